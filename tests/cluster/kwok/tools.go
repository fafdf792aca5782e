//go:build tools

// Package tools pins kwok. It has a module of its own: its release does not compile with the client libraries of Kubernetes' here.
package tools

import _ "sigs.k8s.io/kwok/cmd/kwok"
