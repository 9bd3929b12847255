"""The durable rows of sessions and the bytes of their pictures. Must not decide who runs next or talk to workers."""
