"""Episodes to chunk transitions, and the frozen-feature cache between them.

Knows no VLA, no simulator and no network: arrays and LeRobot datasets in, batches out.
"""
