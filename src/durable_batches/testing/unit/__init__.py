"""Stand-ins for unit tests of activities, workflows and resolvers as plain functions."""
