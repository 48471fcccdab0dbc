// Package install makes the Kubernetes manifests of the control plane and of the injector. It owns what they are called,
// what each may do and how they run; the commands that run in them belong to their own packages. It talks to no cluster:
// `sallyport install` prints what an administrator reads and applies.
//
// What holds for all of it: no container runs as root, writes to its root file system or has a capability; each role
// names the very objects that its account may touch. Objects that their owners fill in later (the secret of the
// authority, the trust bundle) are printed without data, so that applying again leaves them alone.
package install
