"""`ServerService`: what a client talks to, and who it is."""

from cadenza.v1 import server_service_pb2, server_service_pb2_grpc

from cadenza_server.api.callers import Context, current_caller
from cadenza_server.api.conversion import to_duration, to_timestamp
from cadenza_server.config import Limits
from cadenza_server.engine import INLINE_RESULT_BYTES_MAX, Engine
from cadenza_server.model.qpy import QPY_VERSION_MAX, QPY_VERSION_MIN


class ServerServicer(server_service_pb2_grpc.ServerServiceServicer):
    """Facts about the server. `start_time` and `half_life` in nanoseconds."""

    def __init__(self, engine: Engine, limits: Limits, *, version: str, start_time: int, half_life: int) -> None:
        self._engine = engine
        self._fixed = server_service_pb2.ServerInfo(
            version=version,
            start_time=to_timestamp(start_time),
            half_life=to_duration(half_life),
            qpy_version_min=QPY_VERSION_MIN,
            qpy_version_max=QPY_VERSION_MAX,
            limits=server_service_pb2.ServerLimits(
                message_bytes_max=limits.message_bytes_max,
                inline_result_bytes_max=INLINE_RESULT_BYTES_MAX,
                jobs_per_call_max=limits.jobs_per_call_max,
                pubs_per_job_max=limits.pubs_per_job_max,
                circuits_per_job_max=limits.circuits_per_job_max,
                terms_per_job_max=limits.terms_per_job_max,
                shots_per_pub_max=limits.shots_per_pub_max,
                queued_jobs_max=limits.queued_jobs_max,
                queued_jobs_per_user_max=limits.queued_jobs_per_user_max,
                sessions_per_user_max=limits.sessions_per_user_max,
                watches_per_connection_max=limits.watches_per_connection_max,
                watches_per_user_max=limits.watches_per_user_max,
                result_age_max=to_duration(limits.result_age_max),
                result_age_min=to_duration(limits.result_age_min or None),
                result_bytes_max=limits.result_bytes_max,
            ),
        )

    async def GetServerInfo(
        self, request: server_service_pb2.GetServerInfoRequest, context: Context
    ) -> server_service_pb2.GetServerInfoResponse:
        """Version, limits, time, and who the caller is."""
        caller = current_caller()
        answer = server_service_pb2.GetServerInfoResponse(
            server=self._fixed, caller=server_service_pb2.Caller(user=caller.path, operator=caller.operator)
        )
        answer.server.now.FromNanoseconds(self._engine.now())
        return answer
