"""A client in another language, which knows nothing of Sandkeeper but an address.

It asks the server what there is (reflection), makes its calls from that, and lives through the life of a sandbox:
health, create, watch, get, list, bad input, terminate. It checks what it sees, and prints a report as JSON.

    python3 client.py HOST:PORT NAME

Needs grpcio, grpcio-reflection, grpcio-health-checking and protobuf. No generated code.
"""

import json
import sys

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

# Seconds that a call may take.
DEADLINE = 30
SERVICES = [
    "sandkeeper.v1.AgentService",
    "sandkeeper.v1.ClusterService",
    "sandkeeper.v1.EventService",
    "sandkeeper.v1.FleetService",
    "sandkeeper.v1.SandboxService",
]


def check(holds, what):
    """Ends the program if something does not hold. (`assert` is left out with -O.)"""
    if not holds:
        raise SystemExit(f"does not hold: {what}")


class Service:
    """A service, as the server itself describes it: each method is a function of keyword arguments."""

    def __init__(self, channel, pool, name):
        self._channel = channel
        self._methods = pool.FindServiceByName(name).methods_by_name

    def __getattr__(self, name):
        method = self._methods[name]
        request = message_factory.GetMessageClass(method.input_type)
        response = message_factory.GetMessageClass(method.output_type)
        path = f"/{method.containing_service.full_name}/{method.name}"
        kind = self._channel.unary_stream if method.server_streaming else self._channel.unary_unary
        call = kind(path, request_serializer=request.SerializeToString, response_deserializer=response.FromString)
        return lambda **fields: call(json_format.ParseDict(fields, request()), timeout=DEADLINE)


def as_dict(message):
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def health_of(channel):
    """What each service says of its health, and "" of all."""
    stub = health_pb2_grpc.HealthStub(channel)
    status = health_pb2.HealthCheckResponse.ServingStatus
    found = {}
    for name in ["", *SERVICES]:
        request = health_pb2.HealthCheckRequest(service=name)
        # A node that has just started looks for its leader first: its health is watched until it serves.
        for answer in stub.Watch(request, timeout=DEADLINE):
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                break
        found[name] = status.Name(stub.Check(request, timeout=DEADLINE).status)
        check(found[name] == "SERVING", f"{name or 'the node'} is {found[name]}")
    try:
        stub.Check(health_pb2.HealthCheckRequest(service="no.such.Service"), timeout=DEADLINE)
        check(False, "the health of a service that does not exist is not known")
    except grpc.RpcError as error:
        check(error.code() == grpc.StatusCode.NOT_FOUND, f"an unknown service is NOT_FOUND: {error.code()}")
    return found


def refused(code, call, **fields):
    """The message of a refusal that a call has to be."""
    try:
        call(**fields)
    except grpc.RpcError as error:
        check(error.code() == code, f"{code} is expected: {error.code()}: {error.details()}")
        return error.details()
    check(False, f"{fields} is refused")


def watch_until(events, from_revision, sandbox_id, last_type):
    """The types of a sandbox's events from a revision on, up to one of this type."""
    types = []
    stream = events.WatchEvents(from_revision=from_revision, filter={"sandbox_id": sandbox_id})
    for message in stream:
        for event in message.events:
            check(event.sandbox_id == sandbox_id, "a filter lets nothing else through")
            types.append(as_dict(event)["type"])
        if last_type in types:
            stream.cancel()
            return types
    check(False, f"the watch brings {last_type}: {types}")


def main(address, name):
    channel = grpc.insecure_channel(address)
    health = health_of(channel)
    database = ProtoReflectionDescriptorDatabase(channel)
    services = sorted(database.get_services())
    check(set(SERVICES) <= set(services), f"all services are listed: {services}")
    check(not any("internal" in service for service in services), f"and none that is private: {services}")
    pool = descriptor_pool.DescriptorPool(database)
    sandboxes = Service(channel, pool, "sandkeeper.v1.SandboxService")
    events = Service(channel, pool, "sandkeeper.v1.EventService")

    created = sandboxes.CreateSandbox(name=name, command=["sleep", "600"], labels={"from": "python"}, mode="MODE_STRONG")
    sandbox = created.sandbox
    check(as_dict(sandbox)["phase"] == "PHASE_RUNNING", "STRONG answers when it runs")
    lived = watch_until(events, created.revision, sandbox.sandbox_id, "EVENT_TYPE_SANDBOX_RUNNING")
    found = sandboxes.GetSandbox(ref={"name": name}).sandbox
    check(found == sandbox, f"get gives what create gave: {found} and {sandbox}")
    listed = sandboxes.ListSandboxes(label_selector={"from": "python"}).sandboxes
    check([one.sandbox_id for one in listed] == [sandbox.sandbox_id], "list finds it by its label")

    invalid = refused(grpc.StatusCode.INVALID_ARGUMENT, sandboxes.CreateSandbox, name="NOT A NAME")
    check("name" in invalid, f"it names the field: {invalid}")
    taken = refused(grpc.StatusCode.ALREADY_EXISTS, sandboxes.CreateSandbox, name=name)
    check(sandbox.sandbox_id in taken, f"it names the holder: {taken}")

    ended = sandboxes.TerminateSandbox(ref={"sandbox_id": sandbox.sandbox_id})
    check(as_dict(ended.sandbox)["phase"] in ("PHASE_TERMINATING", "PHASE_GONE"), "it is on its way out")
    refused(grpc.StatusCode.NOT_FOUND, sandboxes.GetSandbox, ref={"name": name})
    died = watch_until(events, found.revision + 1, sandbox.sandbox_id, "EVENT_TYPE_SANDBOX_REMOVED")
    report = {
        "health": health,
        "services": services,
        "sandbox": as_dict(sandbox),
        "events": lived + died,
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
