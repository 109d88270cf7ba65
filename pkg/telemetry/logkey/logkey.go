// Package logkey holds the keys of log records, each with its type.
//
// Messages are constant strings; what varies goes into attributes made here, so that one thing has one key in the logs of all
// services: logger.Info("pod started", logkey.Pod(namespace, name)). A new key is a function in this file.
package logkey

import (
	"log/slog"
	"time"
)

// Err is the error that made the record worth writing. A nil error is logged as empty.
func Err(err error) slog.Attr {
	if err == nil {
		return slog.String("error", "")
	}
	return slog.String("error", err.Error())
}

// Service is the binary's name, for example dhow-scheduler.
func Service(name string) slog.Attr { return slog.String("service", name) }

// Component is the part of a service that speaks, for example a controller's name.
func Component(name string) slog.Attr { return slog.String("component", name) }

// Method is the full name of an RPC: /dhow.core.v1.Pods/Get.
func Method(name string) slog.Attr { return slog.String("method", name) }

// Code is a gRPC status code.
func Code(code interface{ String() string }) slog.Attr { return slog.String("code", code.String()) }

// Duration is how long the thing took.
func Duration(d time.Duration) slog.Attr { return slog.Duration("duration", d) }

// Delay is how long the next attempt waits.
func Delay(d time.Duration) slog.Attr { return slog.Duration("delay", d) }

// Identity is the name of the caller, without groups.
func Identity(name string) slog.Attr { return slog.String("identity", name) }

// Stack is the stack of a panic.
func Stack(stack []byte) slog.Attr { return slog.String("stack", string(stack)) }

// Panic is the value of a panic.
func Panic(value any) slog.Attr { return slog.Any("panic", value) }

// Resource is a plural with its group, as in "deployments.apps".
func Resource(name string) slog.Attr { return slog.String("resource", name) }

// Kind is an object's kind.
func Kind(kind string) slog.Attr { return slog.String("kind", kind) }

// Namespace is an object's namespace.
func Namespace(namespace string) slog.Attr { return slog.String("namespace", namespace) }

// Name is an object's name.
func Name(name string) slog.Attr { return slog.String("name", name) }

// Object is an object's namespace and name, or its name alone.
func Object(namespace, name string) slog.Attr { return slog.String("object", join(namespace, name)) }

// UID is an object's UID.
func UID(uid string) slog.Attr { return slog.String("uid", uid) }

// Pod is a pod's namespace and name.
func Pod(namespace, name string) slog.Attr { return slog.String("pod", join(namespace, name)) }

// Node is a node's name.
func Node(name string) slog.Attr { return slog.String("node", name) }

// Container is a container's name in its pod.
func Container(name string) slog.Attr { return slog.String("container", name) }

// ContainerID is the runtime's id of a container.
func ContainerID(id string) slog.Attr { return slog.String("container_id", id) }

// SandboxID is the runtime's id of a pod sandbox.
func SandboxID(id string) slog.Attr { return slog.String("sandbox_id", id) }

// Image is an image reference.
func Image(reference string) slog.Attr { return slog.String("image", reference) }

// Revision is a resource version.
func Revision(revision int64) slog.Attr { return slog.Int64("revision", revision) }

// Key is a key of the store.
func Key(key string) slog.Attr { return slog.String("key", key) }

// Session is the id of a node's session.
func Session(id string) slog.Attr { return slog.String("session", id) }

// Address is a network address with its port.
func Address(address string) slog.Attr { return slog.String("address", address) }

// Path is a file's or folder's path.
func Path(path string) slog.Attr { return slog.String("path", path) }

// Signal is traces, metrics or logs.
func Signal(name string) slog.Attr { return slog.String("signal", name) }

// Reason is a machine-readable reason in CamelCase, as in conditions and events.
func Reason(reason string) slog.Attr { return slog.String("reason", reason) }

// Attempt counts tries from 1.
func Attempt(n int) slog.Attr { return slog.Int("attempt", n) }

// Count is a number of things that the message names.
func Count(n int) slog.Attr { return slog.Int("count", n) }

// Bytes is a size.
func Bytes(n int64) slog.Attr { return slog.Int64("bytes", n) }

// PID is a process id.
func PID(pid int) slog.Attr { return slog.Int("pid", pid) }

// Time is a moment that the message names, for example until when a certificate is valid.
func Time(t time.Time) slog.Attr { return slog.Time("at", t) }

func join(namespace, name string) string {
	if namespace == "" {
		return name
	}
	return namespace + "/" + name
}
