"""A stand-in node: it runs the containers of pods as processes of this machine, in namespaces of their own.

It needs root and Linux namespaces (`sandbox.missing` says what is not permitted). Images are programs of this machine
(`images`); processor and memory limits mean nothing here, nor does a seccomp profile.
"""
