/*-------------------------------------------------------------------------
 *
 * walsender.c
 *	  What our own walsender does differently: it sends in large pieces, and is
 *	  never a synchronous standby.
 *
 * A walsender hands each row to the kernel by itself.  Two thirds of the time
 * that it needs for a busy stream are those system calls, and each of them
 * wakes the reader for a hundred bytes.  Ours keeps what it has to send until
 * the transaction is complete; and longer, but only up to a limit, where it is
 * far behind, since then more is about to follow.
 *
 * Nothing is left unsent.  Within a transaction, decoding goes from its begin
 * to its commit without waiting for anything but the disk.  After a commit, the
 * walsender tries to flush after each WAL record and before it waits for more,
 * and by then it is not far behind.  Whatever is not a change in a transaction
 * (a keepalive, an error, the end of the stream) takes all before it along.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <sys/socket.h>

#include "access/xlog.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "replication/logicalproto.h"
#include "replication/syncrep.h"
#include "replication/walsender.h"
#include "replication/walsender_private.h"
#include "utils/guc.h"

/* these want Kerberos's header, which the server's own packages don't need */
#undef ENABLE_GSS
#include "libpq/libpq.h"
#include "libpq/libpq-be.h"

PG_FUNCTION_INFO_V1(electric_cm_tune_walsender);

/* What may be kept before it is sent. */
#define KEEP_BYTES			(32 * 1024)

/* With more WAL than this still to be decoded, complete transactions wait ... */
#define FAR_BEHIND_BYTES	(64 * 1024)

/* ... unless this many records had nothing in them to be sent. */
#define KEEP_RECORDS		64

/* What may be sent before it has been read. */
#define SEND_BUFFER_BYTES	(4 * 1024 * 1024)

/* A row change in CopyData: 'w', three numbers of 8 bytes, pgoutput's message. */
#define XLOGDATA_HEADER		25

static const PQcommMethods *socket_methods; /* the server's own */
static bool in_transaction = false;
static bool keeping = false;
static Size kept_bytes = 0;
static int	flushes_asked = 0;	/* since the last message */

static bool
is_far_behind(void)
{
	return GetFlushRecPtr(NULL) > MyWalSnd->sentPtr + FAR_BEHIND_BYTES;
}

/*
 * May this message wait for what follows?
 */
static bool
may_keep(char type, const char *s, Size len)
{
	if (type != 'd' || len <= XLOGDATA_HEADER || s[0] != 'w')
		return false;
	if (s[XLOGDATA_HEADER] == LOGICAL_REP_MSG_BEGIN)
		in_transaction = true;
	else if (s[XLOGDATA_HEADER] == LOGICAL_REP_MSG_COMMIT)
		in_transaction = false;
	return kept_bytes + len < KEEP_BYTES && (in_transaction || is_far_behind());
}

static void
keep_or_send(char type, const char *s, size_t len)
{
	keeping = may_keep(type, s, len);
	kept_bytes = keeping ? kept_bytes + len : 0;
	flushes_asked = 0;
	socket_methods->putmessage_noblock(type, s, len);
}

static int
flush_unless_keeping(void)
{
	if (keeping && !in_transaction &&
		(flushes_asked++ >= KEEP_RECORDS || !is_far_behind()))
	{
		keeping = false;
		kept_bytes = 0;
	}
	return keeping ? 0 : socket_methods->flush_if_writable();
}

static bool
is_send_pending_unless_keeping(void)
{
	return !keeping && socket_methods->is_send_pending();
}

static void
send_in_large_pieces(void)
{
	static PQcommMethods methods;

	if (socket_methods != NULL)
		return;
	socket_methods = PqCommMethods;
	methods = *socket_methods;
	methods.putmessage_noblock = keep_or_send;
	methods.flush_if_writable = flush_unless_keeping;
	methods.is_send_pending = is_send_pending_unless_keeping;
	PqCommMethods = &methods;
}

/*
 * "*" in synchronous_standby_names takes any walsender for a standby.  Every
 * commit of the server would wait for our acknowledgement then, and be reported
 * as safe elsewhere when it is not.  A walsender goes by its own copy of the
 * setting, and reads that anew with each reload; a value from a higher place
 * than the configuration file stays.
 */
static void
be_no_standby(void)
{
	SetConfigOption("synchronous_standby_names", "", PGC_SIGHUP, PGC_S_OVERRIDE);
	if (MyWalSnd != NULL)
		SyncRepInitConfig();
}

/*
 * _electric_cm.tune_walsender() RETURNS void
 *
 * Called in our own walsender, for the rest of its life.  The kernel charges a
 * Unix socket's buffer several hundred bytes for each piece besides its
 * contents, so the buffer is made larger as well; the kernel cuts that wish
 * down to what it allows (net.core.wmem_max).
 *
 * Errors: 55000 this is not a walsender.
 */
Datum
electric_cm_tune_walsender(PG_FUNCTION_ARGS pg_attribute_unused())
{
	int			size = SEND_BUFFER_BYTES;

	if (!am_walsender || MyProcPort == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this session is not a walsender")));
	be_no_standby();
	send_in_large_pieces();
	if (setsockopt(MyProcPort->sock, SOL_SOCKET, SO_SNDBUF,
				   (char *) &size, sizeof(size)) != 0)
		ereport(LOG,
				(errmsg("could not widen the send buffer: %m")));
	PG_RETURN_VOID();
}
