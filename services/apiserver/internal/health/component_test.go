package health_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	clusterv1 "dhow.dev/gen/go/dhow/cluster/v1"
	"dhow.dev/services/apiserver/internal/health"
	"dhow.dev/services/apiserver/internal/request"
)

// TestComponents reads the health of the services as clients of Kubernetes do, in JSON, in protobuf and as a table.
func TestComponents(t *testing.T) {
	components := health.Components(func(context.Context) []*clusterv1.Component {
		return []*clusterv1.Component{
			clusterv1.Component_builder{Name: "apiserver", Healthy: true}.Build(),
			clusterv1.Component_builder{Name: "scheduler", Message: "connection refused"}.Build(),
		}
	})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		info, err := request.Parse(r)
		if err != nil {
			t.Error(err)
		}
		components.ServeHTTP(w, r.WithContext(request.NewContext(r.Context(), info)))
	}))
	t.Cleanup(server.Close)
	for _, contentType := range []string{"application/json", "application/vnd.kubernetes.protobuf"} {
		client, err := kubernetes.NewForConfig(&rest.Config{Host: server.URL, ContentConfig: rest.ContentConfig{ContentType: contentType}})
		if err != nil {
			t.Fatal(err)
		}
		list, err := client.CoreV1().ComponentStatuses().List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if len(list.Items) != 2 || list.Items[0].Name != "apiserver" || list.Items[0].Conditions[0].Status != corev1.ConditionTrue {
			t.Errorf("%s: %+v", contentType, list.Items)
		}
		one, err := client.CoreV1().ComponentStatuses().Get(t.Context(), "scheduler", metav1.GetOptions{})
		if err != nil || one.Conditions[0].Status != corev1.ConditionFalse || one.Conditions[0].Error != "connection refused" {
			t.Errorf("%s: %+v %v", contentType, one, err)
		}
		if _, err := client.CoreV1().ComponentStatuses().Get(t.Context(), "gizmo", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("%s: %v", contentType, err)
		}
		if err := client.CoreV1().ComponentStatuses().Delete(t.Context(), "scheduler", metav1.DeleteOptions{}); !apierrors.IsMethodNotSupported(err) {
			t.Errorf("%s: %v", contentType, err)
		}
	}
	r, err := http.NewRequest(http.MethodGet, "/api/v1/componentstatuses", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")
	info, err := request.Parse(r)
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	components.ServeHTTP(w, r.WithContext(request.NewContext(r.Context(), info)))
	if body := w.Body.String(); !strings.Contains(body, `"kind":"Table"`) || !strings.Contains(body, `"cells":["scheduler","Unhealthy","","connection refused"]`) {
		t.Errorf("%s", body)
	}
}
