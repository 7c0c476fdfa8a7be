// Package deploy contains the tests of the files beside it, with which Sluice is deployed.
//
//	Dockerfile        the image, for builders with access to a registry
//	image             builds the image without one
//	kustomize/base    the DaemonSet and its RBAC objects
//	kustomize/startup-taint  a component: keep pods off new nodes until an agent is ready
//	helm/sluice       the base as a Helm chart
//	monitoring        a Grafana dashboard and alert rules for Prometheus
//
// The base and the chart with its default values must be equal. The tests decode both strictly
// into the types of the Kubernetes API. They render the chart with the few functions of Helm
// that it uses: Helm and kustomize as libraries would add about a hundred modules to go.mod.
// "make check-deploy" compares the results with those of Helm and kustomize.
package deploy
