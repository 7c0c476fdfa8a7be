// Package deploy contains the tests of the files in its directory, which deploy Sluice.
//
//	Dockerfile        the image, for builders with access to a registry
//	image             builds the image without a registry
//	kustomize/base    the DaemonSet and its RBAC objects
//	kustomize/startup-taint     a component: keep pods off new nodes until an agent is ready
//	kustomize/monitoring        a component: what the Prometheus Operator needs
//	kustomize/kernel-cache-off  a component: the kernel remembers no verdicts
//	helm/sluice       the base as a Helm chart
//	monitoring        a Grafana dashboard and alert rules for Prometheus
//
// The base and the chart with its default values must give equal objects. The tests decode both
// strictly into the types of the Kubernetes API. They implement the few functions of Helm that
// the chart uses: Helm and kustomize as libraries would add about a hundred modules to go.mod.
// "make check-deploy" compares the rendered objects with the output of Helm and kustomize.
package deploy
