"""What holds for all tests, those beside the examples too: their lanes, the rules of these, and what saves time."""

pytest_plugins = ["tests.lanes.plugin", "tests.lanes.rules", "tests.lanes.garbage", "tests.lanes.memory"]
