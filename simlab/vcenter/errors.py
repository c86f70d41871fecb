"""What may be wrong with how the stand-in is started. Refusals that a client sees are vSphere's own faults."""

from drcore.errors import HomewardError


class SimulatorDead(HomewardError):
    code = "HW-SIMLAB-201"
    what = "the stand-in for vCenter ended before it was ready"
    found = "{output}"
    expected = "one line of JSON with its address"
    remedy = "correct the inventory file as docs/simlab-vcenter.md describes it and start again"
    output: str


class SimulatorNotBuilt(HomewardError):
    code = "HW-SIMLAB-202"
    what = "the stand-in for vCenter could not be built"
    found = "{output}"
    expected = "scripts/build-vcenter to leave build/vcenter-sim"
    remedy = "run scripts/build-vcenter by hand: it needs Go 1.25 or later, or access to PyPI, and the Go module proxy"
    output: str


class ControlRefused(HomewardError):
    code = "HW-SIMLAB-203"
    what = "the control port of the stand-in for vCenter refused {request}"
    found = "{reason}"
    expected = "a request as docs/simlab-vcenter.md describes it"
    remedy = "correct the request"
    request: str
    reason: str
