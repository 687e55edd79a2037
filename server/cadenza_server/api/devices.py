"""`DeviceService`: shows the devices, and calibrates them. Everybody sees devices; operators calibrate them."""

from collections.abc import Awaitable, Callable

from cadenza.v1 import device_pb2, device_service_pb2, device_service_pb2_grpc, job_pb2, program_pb2

from cadenza_server.api.callers import Context, current_caller
from cadenza_server.api.conversion import fill_device, to_job
from cadenza_server.api.fields import check_id, check_page_size, invalid, make_key
from cadenza_server.api.jobs import JobSubmitter
from cadenza_server.api.paging import cut_page
from cadenza_server.api.scope import Scope
from cadenza_server.model.errors import Refusal


class DeviceServicer(device_service_pb2_grpc.DeviceServiceServicer):
    """Devices. `describe(name)` gives what does not change of a device, properties as configured included, when that
    is known."""

    def __init__(
        self, scope: Scope, submitter: JobSubmitter, describe: Callable[[str], Awaitable[device_pb2.Device]]
    ) -> None:
        self._engine = scope.engine
        self._submitter = submitter
        self._describe = describe

    async def _convert(self, name: str, *, with_properties: bool) -> device_pb2.Device:
        message = device_pb2.Device()
        message.CopyFrom(await self._describe(name))  # first: it may wait
        view = self._engine.device_view(name)
        fill_device(message, view, with_properties=with_properties)
        return message

    async def ListDevices(
        self, request: device_service_pb2.ListDevicesRequest, context: Context
    ) -> device_service_pb2.ListDevicesResponse:
        """All devices, by name."""
        names, token = cut_page(
            self._engine.device_names(), lambda name: name, check_page_size(request.page_size), request.page_token, ""
        )
        devices = [await self._convert(name, with_properties=False) for name in names]
        return device_service_pb2.ListDevicesResponse(devices=devices, next_page_token=token)

    async def GetDevice(
        self, request: device_service_pb2.GetDeviceRequest, context: Context
    ) -> device_service_pb2.GetDeviceResponse:
        """One device with its properties."""
        name = check_id(request.name, "name")
        return device_service_pb2.GetDeviceResponse(device=await self._convert(name, with_properties=True))

    async def SubmitCalibration(
        self, request: device_service_pb2.SubmitCalibrationRequest, context: Context
    ) -> device_service_pb2.SubmitCalibrationResponse:
        """A calibration job."""
        caller = current_caller()
        if not request.device:
            raise invalid("device", "it is missing: name the device")
        key = make_key(caller, "SubmitCalibration", request.request_id, request)
        spec = job_pb2.JobSpec(
            job_id=request.job_id,
            device=request.device,
            tags=request.tags,
            program=program_pb2.Program(calibration=request.calibration),
        )
        if request.HasField("max_execution_time"):
            spec.max_execution_time.CopyFrom(request.max_execution_time)
        try:
            command, content = await self._submitter.prepare(spec, caller)
        except Refusal as refusal:
            if refusal.field is not None:
                refusal.field = refusal.field.removeprefix("program.")  # of `JobSpec`; the request has no program
            raise
        (view,) = await self._engine.submit((command,), (content,), key)
        return device_service_pb2.SubmitCalibrationResponse(job=to_job(view))
