// Package deploy is how Sluice is shipped; its tests are all the Go there is of it.
//
//	Dockerfile        the image, for builders that reach a registry
//	image             builds the image without one
//	kustomize/base    the DaemonSet and what it needs
//	kustomize/startup-taint  a component: keep pods off new nodes until an agent is ready
//	helm/sluice       the same as a chart
//	monitoring        a Grafana dashboard and alert rules for Prometheus
//
// The base and the chart with its default values must say the same. The tests read
// both strictly into the types of the Kubernetes API. They render the chart with
// the few functions of Helm that it uses, because Helm and kustomize would bring
// some hundred modules into go.mod for nothing that runs; "make check-deploy" holds
// the rendering against the real ones.
package deploy
