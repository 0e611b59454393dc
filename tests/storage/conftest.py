"""The misbehaving proxy's fixtures."""

from tests.faults import fault_proxy, fault_server

__all__ = ["fault_proxy", "fault_server"]
