module dhow.dev/e2e

go 1.26.0

replace dhow.dev/gen/go => ../gen/go

require dhow.dev/gen/go v0.0.0

replace dhow.dev/pkg => ../pkg

require dhow.dev/pkg v0.0.0

replace dhow.dev/services => ../services

require dhow.dev/services v0.0.0

replace dhow.dev/cli => ../cli

require dhow.dev/cli v0.0.0

require (
	go.opentelemetry.io/proto/otlp v1.11.0 // indirect
	golang.org/x/net v0.61.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
	golang.org/x/text v0.43.0 // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20260928230214-8a89bd6388cc // indirect
	google.golang.org/grpc v1.85.0 // indirect
	google.golang.org/protobuf v1.36.12 // indirect
	k8s.io/cri-api v0.36.3 // indirect
)
