"""Fixtures of ingest's tests."""

from tests.bad_network import impatient, source
from tests.faults import fault_proxy, fault_server

__all__ = ["fault_proxy", "fault_server", "impatient", "source"]
