"""What the type checker alone keeps: commands and events are values that nobody changes."""

from cadenza_server.model.commands import SetDeviceReady


def test_a_value_is_equal_by_its_fields_and_frozen_by_the_type_checker() -> None:
    ready = SetDeviceReady(device="qpu", ready=True)
    assert ready == SetDeviceReady(device="qpu", ready=True)
    assert hash(ready) == hash(SetDeviceReady(device="qpu", ready=True))
    # mypy refuses this, and it would report an `ignore` that ignores nothing: so its own run tests it.
    ready.ready = False  # type: ignore[misc]
    assert ready != SetDeviceReady(device="qpu", ready=True)
