"""What holds for all tests, those beside the examples too: their lanes, and the rules of the lanes."""

pytest_plugins = ["tests.lanes.plugin", "tests.lanes.rules"]
