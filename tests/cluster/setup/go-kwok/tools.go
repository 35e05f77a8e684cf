//go:build tools

// Package tools names kwok apart from the other programs: it is built on a later Kubernetes than the cluster's.
package tools

import _ "sigs.k8s.io/kwok/cmd/kwok"
