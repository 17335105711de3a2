"""One document: activities, workflows, checkpoints, and the codec of what they take and give."""
