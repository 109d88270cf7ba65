package release

import (
	"fmt"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/yaml"

	"dhow.dev/cli/internal/connect"
	"dhow.dev/cli/internal/credentials"
	"dhow.dev/pkg/identity"
)

// What the administrator's Secret has beside the certificate.
const (
	kubeconfigFile = "kubeconfig"
	clientFile     = "client.yaml"
)

// contextName is that of the kubeconfig's first context; others have a number behind it.
const contextName = "dhow"

// configure adds the configurations of kubectl and of dhow to an administrator's certificate: servers (host:port) are those of the gRPC API, kubernetes (URLs) those of the
// Kubernetes API, a context each. The one of dhow names the files beside it.
func configure(data map[string][]byte, servers, kubernetes []string) error {
	config := clientcmdapi.NewConfig()
	config.CurrentContext = contextName
	config.AuthInfos[identity.Admin] = &clientcmdapi.AuthInfo{ClientCertificateData: data[certificateKey], ClientKeyData: data[privateKey]}
	for i, server := range kubernetes {
		name := contextName
		if i > 0 {
			name = fmt.Sprintf("%s-%d", contextName, i+1)
		}
		config.Clusters[name] = &clientcmdapi.Cluster{
			Server: server, CertificateAuthorityData: data[authorityKey],
			// Whatever leads there, a port that is forwarded or a load balancer without a name: this name is in every API server's certificate.
			TLSServerName: credentials.APIServerName,
		}
		config.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: identity.Admin}
	}
	kubeconfig, err := clientcmd.Write(*config)
	if err != nil {
		return err
	}
	client, err := yaml.Marshal(connect.Config{Servers: servers, CertificateAuthority: authorityKey, Certificate: certificateKey, Key: privateKey})
	if err != nil {
		return err
	}
	data[kubeconfigFile], data[clientFile] = kubeconfig, client
	return nil
}
