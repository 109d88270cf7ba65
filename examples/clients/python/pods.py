"""Lists, creates, watches and deletes pods on a Dhow cluster, over mutual TLS, with code generated from proto/.

Every step is checked against what the others saw; the first that does not fit ends the program with exit code 1 and a line that says why.
"""

import argparse
import sys
import uuid

import grpc

from dhow.core.v1 import pod_pb2, pod_pb2_grpc
from dhow.meta.v1 import requests_pb2, watch_pb2


class Failure(Exception):
    """A step that did not do what it had to."""


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--address", required=True, help="host:port of an API server's gRPC door")
    parser.add_argument("--ca", required=True, help="PEM file of the cluster's certificate authority")
    parser.add_argument("--cert", required=True, help="PEM file of the client's certificate")
    parser.add_argument("--key", required=True, help="PEM file of the client's key")
    parser.add_argument("--server-name", default="apiserver.dhow", help="name in the server's certificate (default: %(default)s)")
    parser.add_argument("--namespace", default="default", help="default: %(default)s")
    parser.add_argument("--image", default="registry.example/pause:1", help="the created pod's image; it need not exist, the pod is deleted again")
    parser.add_argument("--timeout", type=float, default=60, help="seconds that each call may take (default: %(default)s)")
    return parser.parse_args()


def read(path):
    with open(path, "rb") as file:
        return file.read()


def connect(args):
    credentials = grpc.ssl_channel_credentials(read(args.ca), read(args.key), read(args.cert))
    return grpc.secure_channel(
        args.address,
        credentials,
        options=[
            # The certificate names the service, not the machine.
            ("grpc.ssl_target_name_override", args.server_name),
            ("grpc.max_receive_message_length", 64 << 20),
        ],
    )


def list_pods(pods, args):
    """Returns the names of the namespace's pods, and the revision that they were read at."""
    names, revision = [], None
    # A list comes in pieces, all of one revision.
    for piece in pods.List(requests_pb2.ListRequest(namespace=args.namespace), timeout=args.timeout):
        names += [pod.metadata.name for pod in piece.items]
        revision = int(piece.metadata.resource_version)
    if revision is None:
        raise Failure("list: the stream ended without a list")
    return names, revision


def new_pod(name, args):
    pod = pod_pb2.Pod()
    pod.metadata.name = name
    pod.metadata.namespace = args.namespace
    pod.metadata.labels["app"] = name
    # Fields have presence: a zero that is set is not the same as a field left out, whose default is 30 seconds.
    pod.spec.termination_grace_period_seconds = 0
    container = pod.spec.containers.add(name="main", image=args.image)
    container.resources.requests["cpu"].string = "10m"
    return pod


def changes(stream):
    """Yields what a watch says, one change after the other, and None where the state at its beginning is complete."""
    for response in stream:
        yield from response.changes
        if response.mark == watch_pb2.WATCH_MARK_SYNCED:
            yield None
    raise Failure("watch: the stream ended early")


def until(events, what, condition):
    """Reads changes until one fits."""
    for change in events:
        if condition(change):
            print(f"watch: {what}")
            return change
    raise Failure(f"watch: ended before: {what}")


def expect(condition, message):
    if not condition:
        raise Failure(message)


def run(args):
    with connect(args) as channel:
        pods = pod_pb2_grpc.PodsStub(channel)

        before, revision = list_pods(pods, args)
        print(f"list: {len(before)} pods in {args.namespace} at revision {revision}: {', '.join(before) or 'none'}")

        name = "python-" + uuid.uuid4().hex[:8]
        watch = pods.Watch(
            watch_pb2.WatchRequest(namespace=args.namespace, label_selector=f"app={name}"), timeout=args.timeout
        )
        events = changes(watch)
        until(events, "the state is complete, no pod has our label yet", lambda change: change is None)

        # From here on there is something to clean up, whatever happens.
        try:
            created = pods.Create(pod_pb2.PodWriteRequest(object=new_pod(name, args)), timeout=args.timeout)
            print(f"create: {created.metadata.name}, uid {created.metadata.uid}, revision {created.metadata.resource_version}")
            expect(created.metadata.uid, "create: the answer has no uid")
            expect(int(created.metadata.resource_version) > revision, "create: the pod is not newer than the list before it")
            expect(
                created.spec.HasField("termination_grace_period_seconds") and created.spec.termination_grace_period_seconds == 0,
                "create: the zero grace period was lost",
            )

            def ours(kind):
                return lambda change: change is not None and change.type == kind and change.object.metadata.uid == created.metadata.uid

            added = until(events, "our pod was added", ours(watch_pb2.EVENT_TYPE_ADDED))
            expect(added.revision == int(created.metadata.resource_version), "watch: the pod was added at another revision than created")

            names, _ = list_pods(pods, args)
            expect(name in names, f"list: {name} is not among {names}")

            try:
                pods.Create(pod_pb2.PodWriteRequest(object=new_pod(name, args)), timeout=args.timeout)
                raise Failure("create: the same name was taken twice")
            except grpc.RpcError as error:
                expect(error.code() == grpc.StatusCode.ALREADY_EXISTS, f"create: want ALREADY_EXISTS, got {error.code()}: {error.details()}")
                print(f"create again: refused: {error.details()}")
        finally:
            delete(pods, name, args)

        until(events, "our pod was deleted", ours(watch_pb2.EVENT_TYPE_DELETED))
        watch.cancel()
        names, _ = list_pods(pods, args)
        expect(name not in names, f"list: {name} is still there")
    print("done: list, create, watch and delete agree")


def delete(pods, name, args):
    options = requests_pb2.DeletionOptions(grace_period_seconds=0)
    try:
        pods.Delete(requests_pb2.DeleteRequest(namespace=args.namespace, name=name, options=options), timeout=args.timeout)
    except grpc.RpcError as error:
        if error.code() != grpc.StatusCode.NOT_FOUND:
            raise
    print(f"delete: {name}")


def main():
    try:
        run(arguments())
    except Failure as failure:
        sys.exit(f"FAILED {failure}")
    except grpc.RpcError as error:
        sys.exit(f"FAILED {error.code().name}: {error.details()}")
    except OSError as error:
        sys.exit(f"FAILED {error}")


if __name__ == "__main__":
    main()
