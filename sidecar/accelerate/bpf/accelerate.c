// SPDX-License-Identifier: MIT OR GPL-2.0-only
//
// Passes what one end of a loopback connection sends straight into the receive
// queue of the other end, where one of the two is this sidecar's socket.
// docs/decisions/0004-accelerate.md says why each rule is as it is.
//
// Two byte streams reach a socket of a sockhash: what TCP delivered (the receive
// queue) and what was redirected (the ingress queue of its psock). recv takes
// the redirected bytes first. So the order of bytes is kept by two rules:
//   - a direction begins to be redirected only when the receiver has consumed
//     everything that was sent to it by TCP;
//   - once it was, and TCP is used again, that is for good.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_core_read.h>

#define AF_INET 2
#define MAX_ENDS 131072
#define SLOTS 65536

// A direction whose reader has not emptied its queue for this many bytes is one of a slow reader.
#define HIGH (256 << 10)

// Members that are read of kernel structures; offsets are the running kernel's (CO-RE).
struct list_head {
	struct list_head *next;
} __attribute__((preserve_access_index));

struct sk_psock {
	struct list_head ingress_msg;
} __attribute__((preserve_access_index));

struct sock {
	void *sk_user_data;
} __attribute__((preserve_access_index));

struct tcp_sock {
	__u32 copied_seq;
	__u32 write_seq;
} __attribute__((preserve_access_index));

// sk_user_data holds flags in its lowest bits (SK_USER_DATA_PTRMASK).
#define USER_DATA_FLAGS 7UL

// An end of a connection, seen from itself. IPv4 as ::ffff:a.b.c.d, so that a dual-stack socket meets an IPv4 one.
struct endpoint {
	__u64 netns;
	__u32 local[4];
	__u32 remote[4];
	__u16 local_port;
	__u16 remote_port;
	__u32 pad;
};

struct entry {
	__u64 cookie;
	__u64 sk; // struct tcp_sock, only ever read by bpf_probe_read_kernel
	__u32 own;
	__u32 pad;
};

struct port {
	__u64 netns;
	__u32 port;
	__u32 pad;
};

enum mode { TCP_FIRST, REDIRECT, TCP_AGAIN };

// What one end sends, kept with the sending socket and changed under its lock.
struct flow {
	__u64 peer_cookie;
	__u64 peer_sk;
	__u32 sent; // since the peer's queue was last seen empty
	__u16 slot;
	__u8 mode;
	__u8 own;
	__u8 overflowed;
	__u8 pad[7];
};

struct counts {
	__u64 connections;
	__u64 messages;
	__u64 bytes;
	__u64 slow;
};

// Read by the sidecar through shared memory, a byte for each value of local port XOR remote port.
struct slots {
	__u8 full[SLOTS];     // the sidecar must not send before the application has read
	__u8 overlaps[SLOTS]; // TCP data may wait behind redirected data: a short read does not mean a dry socket
};

// Sockets of this sidecar. It marks what it dials, and what it listens with: accepted sockets inherit.
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, __u32);
} marks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct flow);
} flows SEC(".maps");

// Ports that the sidecar listens on.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct port);
	__type(value, __u32);
} ports SEC(".maps");

// Sockets of the sockhash, removed when they close.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_ENDS);
	__type(key, struct endpoint);
	__type(value, struct entry);
} ends SEC(".maps");

// By socket cookie, which is never used again. The kernel removes sockets that close.
struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, MAX_ENDS);
	__type(key, __u64);
	__type(value, __u64);
} sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct slots);
} signals SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counts);
} totals SEC(".maps");

static const __u32 zero;

// KEEP has the compiler load a field of a context where it is written: merged
// into one load from a computed address, it would be refused by the verifier.
#define KEEP(v) asm volatile("" : "+r"(v))
#define LOAD(to, from)        \
	do {                  \
		to = from;    \
		KEEP(to);     \
	} while (0)

// The contexts of both programs name these fields alike. Both families' are
// read, one is used.
#define READ_ENDPOINT(e, ctx)                                                     \
	do {                                                                      \
		__u32 l4, l0, l1, l2, l3, r4, r0, r1, r2, r3, v4;                 \
		LOAD(l4, (ctx)->local_ip4);                                       \
		LOAD(r4, (ctx)->remote_ip4);                                      \
		LOAD(l0, (ctx)->local_ip6[0]);                                    \
		LOAD(l1, (ctx)->local_ip6[1]);                                    \
		LOAD(l2, (ctx)->local_ip6[2]);                                    \
		LOAD(l3, (ctx)->local_ip6[3]);                                    \
		LOAD(r0, (ctx)->remote_ip6[0]);                                   \
		LOAD(r1, (ctx)->remote_ip6[1]);                                   \
		LOAD(r2, (ctx)->remote_ip6[2]);                                   \
		LOAD(r3, (ctx)->remote_ip6[3]);                                   \
		LOAD(v4, (ctx)->family);                                          \
		v4 = v4 == AF_INET;                                               \
		__builtin_memset(&(e), 0, sizeof(e));                             \
		(e).netns = bpf_get_netns_cookie(ctx);                            \
		(e).local[0] = v4 ? 0 : l0;                                       \
		(e).local[1] = v4 ? 0 : l1;                                       \
		(e).local[2] = v4 ? bpf_htonl(0xffff) : l2;                       \
		(e).local[3] = v4 ? l4 : l3;                                      \
		(e).remote[0] = v4 ? 0 : r0;                                      \
		(e).remote[1] = v4 ? 0 : r1;                                      \
		(e).remote[2] = v4 ? bpf_htonl(0xffff) : r2;                      \
		(e).remote[3] = v4 ? r4 : r3;                                     \
		(e).local_port = (ctx)->local_port;                               \
		(e).remote_port = bpf_ntohl((ctx)->remote_port);                  \
	} while (0)

static __always_inline void mirror(struct endpoint *out, const struct endpoint *in)
{
	__builtin_memset(out, 0, sizeof(*out));
	out->netns = in->netns;
	__builtin_memcpy(out->local, in->remote, sizeof(out->local));
	__builtin_memcpy(out->remote, in->local, sizeof(out->remote));
	out->local_port = in->remote_port;
	out->remote_port = in->local_port;
}

static __always_inline int is_mapped(const __u32 a[4])
{
	return a[0] == 0 && a[1] == 0 && a[2] == bpf_htonl(0xffff);
}

// Both ends on this host: the same address, or both of 127.0.0.0/8.
static __always_inline int is_local(const struct endpoint *e)
{
	if (e->local[0] == e->remote[0] && e->local[1] == e->remote[1] && e->local[2] == e->remote[2] && e->local[3] == e->remote[3])
		return 1;
	return is_mapped(e->local) && is_mapped(e->remote) &&
	       bpf_ntohl(e->local[3]) >> 24 == 127 && bpf_ntohl(e->remote[3]) >> 24 == 127;
}

// Puts the socket of an event into the maps, after which it can be the target of a redirection.
static __always_inline void join(struct bpf_sock_ops *ops, struct bpf_sock *sk, struct endpoint *e, int own, const struct entry *peer)
{
	struct flow *f;
	struct entry me = {};
	__u64 cookie = bpf_get_socket_cookie(ops);

	me.cookie = cookie;
	me.own = own;
	me.sk = (__u64)bpf_skc_to_tcp_sock(sk);
	if (!me.sk)
		return;
	// Refused where another sidecar has the socket already: then that one
	// accelerates it. And where it was connected before: its flow is of that time.
	if (bpf_sock_hash_update(ops, &sockets, &cookie, BPF_NOEXIST)) {
		f = bpf_sk_storage_get(&flows, sk, 0, 0);
		if (f)
			f->mode = TCP_AGAIN;
		return;
	}
	f = bpf_sk_storage_get(&flows, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!f)
		return;
	f->own = own;
	f->slot = e->local_port ^ e->remote_port;
	if (peer) {
		f->peer_cookie = peer->cookie;
		f->peer_sk = peer->sk;
	}
	if (bpf_map_update_elem(&ends, e, &me, BPF_ANY))
		return;
	bpf_sock_ops_cb_flags_set(ops, ops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
	if (peer) {
		struct counts *t = bpf_map_lookup_elem(&totals, &zero);

		if (t)
			t->connections++;
	}
}

SEC("sockops")
int watch(struct bpf_sock_ops *ops)
{
	struct endpoint e, far;
	struct bpf_sock *sk;
	struct entry *peer;
	int own;

	switch (ops->op) {
	case BPF_SOCK_OPS_STATE_CB:
		if (ops->args[1] == BPF_TCP_CLOSE) {
			READ_ENDPOINT(e, ops);
			bpf_map_delete_elem(&ends, &e);
		}
		return 1;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		break;
	default:
		return 1;
	}
	READ_ENDPOINT(e, ops);
	if (!is_local(&e))
		return 1;
	sk = ops->sk;
	if (!sk)
		return 1;
	own = bpf_sk_storage_get(&marks, sk, 0, 0) != 0;
	if (ops->op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB) {
		if (!own) {
			struct port p = {};

			p.netns = e.netns;
			p.port = e.remote_port;
			if (!bpf_map_lookup_elem(&ports, &p))
				return 1;
		}
		join(ops, sk, &e, own, 0);
		return 1;
	}
	// The active end is established first: it is there, or it is none of ours.
	mirror(&far, &e);
	peer = bpf_map_lookup_elem(&ends, &far);
	if (!peer || (!own && !peer->own))
		return 1;
	join(ops, sk, &e, own, peer);
	return 1;
}

// 1: nothing redirected waits at the socket; 0: something does; -1: it is not a target any more.
static __always_inline int is_drained(__u64 at)
{
	struct sock *sk = (struct sock *)at;
	struct sk_psock *psock;
	struct list_head *first = 0;
	__u64 data = 0;

	if (bpf_core_read(&data, sizeof(data), &sk->sk_user_data))
		return -1;
	psock = (struct sk_psock *)(data & ~USER_DATA_FLAGS);
	if (!psock || bpf_core_read(&first, sizeof(first), &psock->ingress_msg.next))
		return -1;
	return first == __builtin_preserve_access_index(&psock->ingress_msg);
}

// Whether the receiver has taken everything that was sent by TCP.
static __always_inline int is_consumed(struct bpf_sock *sk, __u64 peer)
{
	struct tcp_sock *to = (struct tcp_sock *)peer;
	struct tcp_sock *from = (struct tcp_sock *)bpf_skc_to_tcp_sock(sk);
	__u32 sent = 0, copied = 0;

	return from && !bpf_core_read(&sent, sizeof(sent), &from->write_seq) &&
	       !bpf_core_read(&copied, sizeof(copied), &to->copied_seq) && sent == copied;
}

SEC("sk_msg")
int pass(struct sk_msg_md *msg)
{
	struct bpf_sock *sk = msg->sk;
	struct slots *sig;
	struct counts *t;
	struct flow *f;
	__u32 size = msg->size;
	int drained;

	if (!sk)
		return SK_PASS;
	f = bpf_sk_storage_get(&flows, sk, 0, 0);
	if (!f || f->mode == TCP_AGAIN)
		return SK_PASS;
	// After shutdown or a reset it is TCP that says so to the sender.
	if (sk->state != BPF_TCP_ESTABLISHED && sk->state != BPF_TCP_CLOSE_WAIT)
		return SK_PASS;
	if (f->mode == TCP_FIRST) {
		if (!f->peer_sk) {
			struct endpoint e, far;
			struct entry *peer;

			READ_ENDPOINT(e, msg);
			mirror(&far, &e);
			peer = bpf_map_lookup_elem(&ends, &far);
			if (!peer || (!f->own && !peer->own))
				return SK_PASS;
			f->peer_cookie = peer->cookie;
			f->peer_sk = peer->sk;
		}
		if (!is_consumed(sk, f->peer_sk))
			return SK_PASS;
		f->mode = REDIRECT;
	}
	sig = bpf_map_lookup_elem(&signals, &zero);
	t = bpf_map_lookup_elem(&totals, &zero);
	if (!sig || !t)
		return SK_PASS;
	drained = is_drained(f->peer_sk);
	if (drained < 0) {
		f->mode = TCP_AGAIN;
		return SK_PASS;
	}
	if (drained) {
		f->sent = 0;
		if (f->overflowed) {
			// The sidecar waited for this. TCP has what a slow reader needs.
			sig->full[f->slot] = 0;
			f->mode = TCP_AGAIN;
			return SK_PASS;
		}
	}
	if (!f->own && !drained && f->sent + size > HIGH) {
		// An application cannot be told to wait; TCP does that. Before the
		// data is sent, so that the sidecar sees it with the data.
		sig->overlaps[f->slot] = 1;
		f->mode = TCP_AGAIN;
		t->slow++;
		return SK_PASS;
	}
	if (bpf_msg_redirect_hash(msg, &sockets, &f->peer_cookie, BPF_F_INGRESS) != SK_PASS) {
		// The peer has closed: TCP answers with a reset.
		f->mode = TCP_AGAIN;
		return SK_PASS;
	}
	f->sent += size;
	t->messages++;
	t->bytes += size;
	if (f->own && f->sent > HIGH && !f->overflowed) {
		f->overflowed = 1;
		sig->full[f->slot] = 1;
		t->slow++;
	}
	return SK_PASS;
}

// Run by the sidecar: whether the application's end has read what was redirected to it.
SEC("syscall")
int drained(struct endpoint *far)
{
	struct endpoint e = *far;
	struct entry *entry = bpf_map_lookup_elem(&ends, &e);

	return !entry || is_drained(entry->sk) != 0;
}

char _license[] SEC("license") = "Dual MIT/GPL";
