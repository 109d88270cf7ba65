package validation

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func probe(path *field.Path, p *corev1.Probe, grace *int64) field.ErrorList {
	if p == nil {
		return nil
	}
	errs := handler(path, handlers{exec: p.Exec, httpGet: p.HTTPGet, tcpSocket: p.TCPSocket, grpc: p.GRPC}, grace)
	for _, n := range []struct {
		name  string
		value int32
	}{
		{"initialDelaySeconds", p.InitialDelaySeconds}, {"timeoutSeconds", p.TimeoutSeconds}, {"periodSeconds", p.PeriodSeconds},
		{"successThreshold", p.SuccessThreshold}, {"failureThreshold", p.FailureThreshold},
	} {
		errs = append(errs, nonNegative(path.Child(n.name), n.value)...)
	}
	if g := p.TerminationGracePeriodSeconds; g != nil && *g <= 0 {
		errs = append(errs, field.Invalid(path.Child("terminationGracePeriodSeconds"), *g, mustBePositive))
	}
	return errs
}

func (p *pod) lifecycle(path *field.Path, l *corev1.Lifecycle, grace *int64) field.ErrorList {
	if l == nil {
		return nil
	}
	var errs field.ErrorList
	for _, h := range []struct {
		name string
		*corev1.LifecycleHandler
	}{{"postStart", l.PostStart}, {"preStop", l.PreStop}} {
		if h.LifecycleHandler != nil {
			errs = append(errs, handler(path.Child(h.name), handlers{exec: h.Exec, httpGet: h.HTTPGet, tcpSocket: h.TCPSocket, sleep: h.Sleep, hook: true}, grace)...)
		}
	}
	if l.StopSignal != nil {
		at := path.Child("stopSignal")
		if p.spec.OS == nil {
			errs = append(errs, field.Forbidden(at, "may not be set for containers with empty `spec.os.name`"))
		} else if p.spec.OS.Name == corev1.Windows && *l.StopSignal != corev1.SIGTERM && *l.StopSignal != corev1.SIGKILL {
			errs = append(errs, field.NotSupported(at, *l.StopSignal, []corev1.Signal{corev1.SIGKILL, corev1.SIGTERM}))
		} else if !strings.HasPrefix(string(*l.StopSignal), "SIG") {
			errs = append(errs, field.NotSupported(at, *l.StopSignal, []corev1.Signal{corev1.SIGINT, corev1.SIGKILL, corev1.SIGQUIT, corev1.SIGTERM, corev1.SIGUSR1, corev1.SIGUSR2}))
		}
	}
	return errs
}

// handlers are the ways to look at a container or to tell it something.
type handlers struct {
	exec      *corev1.ExecAction
	httpGet   *corev1.HTTPGetAction
	tcpSocket *corev1.TCPSocketAction
	grpc      *corev1.GRPCAction
	sleep     *corev1.SleepAction
	hook      bool
}

// handler wants exactly one way.
func handler(path *field.Path, h handlers, grace *int64) field.ErrorList {
	var errs field.ErrorList
	count := 0
	take := func(name string, set bool, check func(*field.Path) field.ErrorList) {
		if !set {
			return
		}
		if count++; count > 1 {
			errs = append(errs, field.Forbidden(path.Child(name), "may not specify more than 1 handler type"))
			return
		}
		errs = append(errs, check(path.Child(name))...)
	}
	take("exec", h.exec != nil, func(at *field.Path) field.ErrorList {
		if len(h.exec.Command) == 0 {
			return field.ErrorList{field.Required(at.Child("command"), "")}
		}
		return nil
	})
	take("httpGet", h.httpGet != nil, func(at *field.Path) field.ErrorList { return httpGet(at, h.httpGet) })
	take("tcpSocket", h.tcpSocket != nil, func(at *field.Path) field.ErrorList { return portNumberOrName(at.Child("port"), h.tcpSocket.Port) })
	take("grpc", h.grpc != nil, func(at *field.Path) field.ErrorList { return portNumber(at.Child("port"), h.grpc.Port) })
	take("sleep", h.sleep != nil, func(at *field.Path) field.ErrorList {
		most := int64(corev1.DefaultTerminationGracePeriodSeconds)
		if grace != nil {
			most = *grace
		}
		if s := h.sleep.Seconds; s < 0 || s > most {
			return field.ErrorList{field.Invalid(at.Child("seconds"), s, "must be non-negative and less than terminationGracePeriodSeconds ("+itoa(most)+")")}
		}
		return nil
	})
	if count == 0 {
		errs = append(errs, field.Required(path, "must specify a handler type"))
	}
	return errs
}

func httpGet(path *field.Path, action *corev1.HTTPGetAction) field.ErrorList {
	var errs field.ErrorList
	if action.Path == "" {
		errs = append(errs, field.Required(path.Child("path"), ""))
	}
	errs = append(errs, portNumberOrName(path.Child("port"), action.Port)...)
	errs = append(errs, oneOf(path.Child("scheme"), action.Scheme, corev1.URISchemeHTTP, corev1.URISchemeHTTPS)...)
	for _, header := range action.HTTPHeaders {
		errs = append(errs, each(path.Child("httpHeaders"), header.Name, utilvalidation.IsHTTPHeaderName(header.Name))...)
	}
	return errs
}
