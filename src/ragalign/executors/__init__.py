"""Work on a Ray cluster: encoders and engines in actors. Optional: the ``ray`` extra."""

from ragalign.executors.cluster import connect
from ragalign.executors.encoder import RayEncoder
from ragalign.executors.factory import start_generator
from ragalign.executors.generator import RayGenerator

__all__ = ["RayEncoder", "RayGenerator", "connect", "start_generator"]
