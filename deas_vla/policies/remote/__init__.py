"""A policy behind NVIDIA's policy-server protocol: messages, client, and the ``VLA`` over them.

``wire`` and ``client`` are light to import: a robot needs numpy, pyzmq and msgpack for them.
"""
