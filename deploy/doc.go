// Package deploy is how Sluice is shipped. It contains only tests.
//
//	Dockerfile        the image, for builders with access to a registry
//	image             builds the image without one
//	kustomize/base    the DaemonSet and its RBAC objects
//	kustomize/startup-taint  a component: keep pods off new nodes until an agent is ready
//	helm/sluice       the same as a chart
//	monitoring        a Grafana dashboard and alert rules for Prometheus
//
// The base and the chart with its default values must be equal. The tests read both strictly
// into the types of the Kubernetes API. They render the chart with the few functions of Helm
// that it uses, because Helm and kustomize would add about a hundred modules to go.mod that no
// program uses; "make check-deploy" compares the result with the real ones.
package deploy
