"""Policy servers: GR00T's ZeroMQ protocol, LeRobot's gRPC, and a view of what a policy believes.

A message passes ``service`` (bytes to a checked question), ``batcher`` (questions that wait
together) and ``deciding`` (one call of the policy). The client's half, which a robot needs, is
``policies/remote``.
"""
