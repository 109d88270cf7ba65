package release

import (
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

// configure adds the configurations of kubectl and of dhow to the data of the administrator's Secret. The one of dhow names the files beside it.
func (m maker) configure(data map[string][]byte) error {
	const name = "dhow"
	config := clientcmdapi.NewConfig()
	config.Clusters[name] = &clientcmdapi.Cluster{
		Server: m.Kubernetes, CertificateAuthorityData: data[authorityKey],
		// Whatever leads there, a port that is forwarded or a load balancer without a name: this name is in every API server's certificate.
		TLSServerName: credentials.APIServerName,
	}
	config.AuthInfos[identity.Admin] = &clientcmdapi.AuthInfo{ClientCertificateData: data[certificateKey], ClientKeyData: data[privateKey]}
	config.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: identity.Admin}
	config.CurrentContext = name
	kubeconfig, err := clientcmd.Write(*config)
	if err != nil {
		return err
	}
	client, err := yaml.Marshal(connect.Config{Servers: m.Servers, CertificateAuthority: authorityKey, Certificate: certificateKey, Key: privateKey})
	if err != nil {
		return err
	}
	data[kubeconfigFile], data[clientFile] = kubeconfig, client
	return nil
}
