package fake_test

import (
	"testing"

	"dhow.dev/services/node-agent/internal/cri/critest"
	"dhow.dev/services/node-agent/internal/cri/fake"
)

func TestConformance(t *testing.T) {
	critest.Run(t, critest.Setup{Runtime: fake.New("app:1"), Image: "app:1", Forever: []string{"sleep"}, LogDirectory: "/logs"})
}
