package audit

import (
	"encoding/json"
	"net/netip"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"dhow.dev/pkg/identity"
	"dhow.dev/services/apiserver/internal/request"
)

// Event is one line of the log: Kubernetes' Event of audit.k8s.io/v1.
type Event struct {
	Kind                     string            `json:"kind"`
	APIVersion               string            `json:"apiVersion"`
	Level                    Level             `json:"level"`
	AuditID                  string            `json:"auditID"`
	Stage                    Stage             `json:"stage"`
	RequestURI               string            `json:"requestURI"`
	Verb                     string            `json:"verb"`
	User                     User              `json:"user"`
	ImpersonatedUser         *User             `json:"impersonatedUser,omitempty"`
	SourceIPs                []string          `json:"sourceIPs,omitempty"`
	UserAgent                string            `json:"userAgent,omitempty"`
	ObjectRef                *ObjectReference  `json:"objectRef,omitempty"`
	ResponseStatus           *metav1.Status    `json:"responseStatus,omitempty"`
	RequestObject            json.RawMessage   `json:"requestObject,omitempty"`
	ResponseObject           json.RawMessage   `json:"responseObject,omitempty"`
	RequestReceivedTimestamp metav1.MicroTime  `json:"requestReceivedTimestamp"`
	StageTimestamp           metav1.MicroTime  `json:"stageTimestamp"`
	Annotations              map[string]string `json:"annotations,omitempty"`
}

// User is who asks.
type User struct {
	Username string              `json:"username,omitempty"`
	UID      string              `json:"uid,omitempty"`
	Groups   []string            `json:"groups,omitempty"`
	Extra    map[string][]string `json:"extra,omitempty"`
}

// ObjectReference is what is asked about.
type ObjectReference struct {
	Resource        string `json:"resource,omitempty"`
	Namespace       string `json:"namespace,omitempty"`
	Name            string `json:"name,omitempty"`
	UID             string `json:"uid,omitempty"`
	APIGroup        string `json:"apiGroup,omitempty"`
	APIVersion      string `json:"apiVersion,omitempty"`
	ResourceVersion string `json:"resourceVersion,omitempty"`
	Subresource     string `json:"subresource,omitempty"`
}

// maxUserAgent bounds what callers write into the log.
const maxUserAgent = 1024

func newEvent(level Level, user identity.Identity, info *request.Info, received time.Time) Event {
	e := Event{
		Kind: "Event", APIVersion: apiVersion, Level: level, Verb: info.Verb, User: userOf(user), RequestReceivedTimestamp: metav1.NewMicroTime(received),
	}
	if info.IsResource {
		e.ObjectRef = &ObjectReference{
			Resource: info.Resource, Namespace: info.Namespace, Name: info.Name, APIGroup: info.Group, APIVersion: info.Version, Subresource: info.Subresource,
		}
	}
	return e
}

func userOf(i identity.Identity) User {
	return User{Username: i.Name, UID: i.UID, Groups: i.Groups, Extra: i.Extra}
}

// complete adds to the reference what only an object tells: the name that was generated, for example.
func (o *ObjectReference) complete(object json.RawMessage) {
	if o == nil || object == nil || o.Name != "" {
		return
	}
	var found struct {
		Metadata struct {
			Name, Namespace, UID, ResourceVersion string
		}
	}
	// Patches and lists have no such metadata, and nothing to add.
	if json.Unmarshal(object, &found) == nil {
		o.Name, o.UID = found.Metadata.Name, found.Metadata.UID
		if o.Namespace == "" {
			o.Namespace = found.Metadata.Namespace
		}
	}
}

func bound(agent string) string {
	if len(agent) > maxUserAgent {
		return agent[:maxUserAgent] + "...TRUNCATED"
	}
	return agent
}

// addressOf returns the IP of host:port.
func addressOf(hostport string) (string, bool) {
	address, err := netip.ParseAddrPort(hostport)
	if err != nil {
		return "", false
	}
	return address.Addr().Unmap().WithZone("").String(), true
}
