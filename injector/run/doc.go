// Package run starts an application with a sidecar beside it, on a machine: it starts the sidecar and waits until that is
// ready, redirects the application's traffic to it, starts the application, and undoes it all when that ends, with the
// application's own exit status. The command "sallyport run" calls it, once, on the main goroutine.
//
// It owns, for each name: the folder /run/sallyport/NAME (the sidecar's identity) and the lock beside it, the cgroup in
// which the application runs, the sidecar's ports, the rules of package injector/redirect under that name, and the two
// processes. The sidecar registers and deregisters the service itself, because its packets alone pass the rules; run
// deregisters for one that is dead.
//
// What a crash leaves behind is found and removed by the next start of the same name. In between it fails closed: the
// sidecar dies with this process (PR_SET_PDEATHSIG), and the rules stay.
//
//   - run.go: Run, from the first check to the exit status.
//   - options.go: Options and what is wrong with them.
//   - sidecar.go: the sidecar's process: start, readiness, restarts, end.
//   - command.go: the application's process: user, cgroup, signals, status.
//   - terminal.go: job control, where the application has a terminal.
//   - init.go: what the first process of a container does besides.
//   - line.go: what run and the sidecar say to each other.
//   - hold.go, who.go: the sidecar's ports, which are nobody else's; who has one.
//   - signals.go: whose they are, before the application is started and after.
//   - place.go: the folder, the locks, what a crash has left. cgroup.go: the cgroup.
package run
