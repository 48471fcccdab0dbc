package accelerate

//go:generate go tool bpf2go -no-global-types -type endpoint -type port -type counts -type slots -cc clang -cflags "-O2 -g -Wall -Werror" program bpf/accelerate.c -- -I/usr/include/x86_64-linux-gnu
