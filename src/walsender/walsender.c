/*-------------------------------------------------------------------------
 *
 * walsender.c
 *	  What our own walsender does differently: it sends in large pieces and no
 *	  messages but our own, and is never a synchronous standby.
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
 * A single record can take minutes, if it is the commit of a large transaction,
 * and then nobody asks for anything to be sent: so what is complete waits for
 * more only while no such transaction is being gathered.
 *
 * Anybody may put logical messages of up to a gigabyte into the WAL.  Those that
 * are not the stack's are dropped before they are on their way.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <sys/socket.h>

#include "access/xlog.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "libpq/pqformat.h"
#include "miscadmin.h"
#include "nodes/memnodes.h"
#include "port/pg_bswap.h"
#include "replication/logicalproto.h"
#include "replication/slot.h"
#include "replication/syncrep.h"
#include "replication/walsender.h"
#include "replication/walsender_private.h"
#include "utils/guc.h"

/* these want Kerberos's header, which the server's own packages don't need */
#undef ENABLE_GSS
#include "libpq/libpq.h"
#include "libpq/libpq-be.h"
#include "storage/fd.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/clock.h"
#include "base/stack_catalog.h"
#include "base/stream_message.h"
#include "base/stream_message_io.h"
#include "walsender/unsendable.h"

PG_FUNCTION_INFO_V1(electric_cm_tune_walsender);

/* What may be kept before it is sent. */
#define KEEP_BYTES			(32 * 1024)

/* With more WAL than this still to be decoded, complete transactions wait ... */
#define FAR_BEHIND_BYTES	(64 * 1024)

/* ... unless this many records had nothing in them to be sent. */
#define KEEP_RECORDS		64

/*
 * With more than this in memory of changes of transactions that are not complete
 * yet (a change takes some 100 bytes there, without its row), the next commit
 * may take long.  What has been written to disk is larger still, and is looked
 * for this often.
 */
#define GATHERED_BYTES		(256 * 1024)
#define LOOK_FOR_SPILL_MS	20

/* What may be sent before it has been read. */
#define SEND_BUFFER_BYTES	(4 * 1024 * 1024)

/* A row change in CopyData: 'w', three numbers of 8 bytes, pgoutput's message. */
#define XLOGDATA_HEADER		25

/* A keepalive: 'k', two numbers of 8 bytes, whether an answer is wanted. */
#define KEEPALIVE_LENGTH	18

static const PQcommMethods *socket_methods; /* the server's own */
static bool in_transaction = false;
static bool keeping = false;
static Size kept_bytes = 0;
static int	flushes_asked = 0;	/* since the last message */
static bool giant_pending = false;	/* some of one is still to be sent */
static char *message_prefix;	/* of our messages */

static bool
is_far_behind(void)
{
	return GetFlushRecPtr(NULL) > MyWalSnd->sentPtr + FAR_BEHIND_BYTES;
}

/* ------------------------------------------------- what is being gathered -- */

static MemoryContext changes;	/* where they are kept, NULL: not known */
static MemoryContextCallback changes_callback;

static void
forget_changes(void *arg pg_attribute_unused())
{
	changes = NULL;
}

static MemoryContext
find_context(MemoryContext parent, const char *name)
{
	for (MemoryContext child = parent->firstchild; child != NULL; child = child->nextchild)
	{
		MemoryContext found;

		if (child->name != NULL && strcmp(child->name, name) == 0)
			return child;
		found = find_context(child, name);
		if (found != NULL)
			return found;
	}
	return NULL;
}

/* Has any transaction that is not complete yet been written to disk? */
static bool
has_spilled(void)
{
	static EcmTime looked_at = 0;
	static bool result = true;
	EcmTime		now = ecm_now();
	char		path[MAXPGPATH];
	DIR		   *dir;
	struct dirent *entry;

	if (looked_at != 0 && !ecm_has_passed(looked_at, now, LOOK_FOR_SPILL_MS))
		return result;
	looked_at = now;
	result = true;
	if (MyReplicationSlot == NULL)
		return true;
	snprintf(path, sizeof(path), "pg_replslot/%s",
			 NameStr(MyReplicationSlot->data.name));
	dir = AllocateDir(path);
	if (dir == NULL)
		return true;
	result = false;
	while (!result && (entry = ReadDirExtended(dir, path, LOG)) != NULL)
		result = strncmp(entry->d_name, "xid-", strlen("xid-")) == 0;
	FreeDir(dir);
	return result;
}

/*
 * May the next record be the commit of a large transaction?  The server has no
 * interface for that; the memory that its reorder buffer has for changes tells.
 */
static bool
gathers_much(void)
{
	if (changes == NULL)
	{
		MemoryContext buffer = find_context(TopMemoryContext, "ReorderBuffer");

		changes = buffer != NULL ? find_context(buffer, "Change") : NULL;
		if (changes == NULL)
			return true;
		changes_callback.func = forget_changes;
		MemoryContextRegisterResetCallback(changes, &changes_callback);
	}
	return MemoryContextMemAllocated(changes, false) > GATHERED_BYTES || has_spilled();
}

/* ---------------------------------------------------------------- sending -- */

/*
 * A message that is not the stack's own?  It looks like 'M', flags, LSN, prefix,
 * length, contents.
 */
static bool
is_foreign_message(const char *s, Size len)
{
	const char *prefix = s + XLOGDATA_HEADER + 1 + 1 + 8;
	const char *end = s + len;
	Size		prefix_len = strlen(message_prefix) + 1;
	uint32		size;

	if (s[XLOGDATA_HEADER] != LOGICAL_REP_MSG_MESSAGE)
		return false;
	if ((s[XLOGDATA_HEADER + 1] & 1) == 0 ||	/* not transactional */
		end < prefix || (Size) (end - prefix) < prefix_len + sizeof(size) ||
		memcmp(prefix, message_prefix, prefix_len) != 0)
		return true;
	memcpy(&size, prefix + prefix_len, sizeof(size));
	return pg_ntoh32(size) > ECM_MAX_MESSAGE;
}

/*
 * In place of a giant that we drop: the manager is to know that this process
 * has memory that it won't need again, see ECM_GIANT_BYTES.
 */
static void
tell_of_giant(const char *s)
{
	EcmStreamMessage giant = {.kind = ECM_MESSAGE_GIANT};
	char	   *text = ecm_message_text(&giant);
	StringInfoData message;

	initStringInfo(&message);
	appendBinaryStringInfo(&message, s, XLOGDATA_HEADER + 1);
	pq_sendbyte(&message, 1);
	appendBinaryStringInfo(&message, s + XLOGDATA_HEADER + 2, 8);
	appendBinaryStringInfo(&message, message_prefix, strlen(message_prefix) + 1);
	pq_sendint32(&message, strlen(text));
	appendBinaryStringInfo(&message, text, strlen(text));
	socket_methods->putmessage_noblock('d', message.data, message.len);
	pfree(message.data);
	pfree(text);
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
	return kept_bytes + len < KEEP_BYTES &&
		(in_transaction || (is_far_behind() && !gathers_much()));
}

/*
 * Is this an answer that would come too late to tell anything?  Who asks hears
 * from us as long as parts of a giant message arrive, and asks again afterwards.
 * Each message that is queued behind one has the send buffer made larger by just
 * that: by copying all of it, where realloc() can't do better.
 */
static bool
is_late_answer(char type, const char *s, size_t len)
{
	if (giant_pending && !socket_methods->is_send_pending())
		giant_pending = false;
	/* what wants an answer itself is sent in any case */
	return giant_pending && type == 'd' && len == KEEPALIVE_LENGTH &&
		s[0] == 'k' && s[KEEPALIVE_LENGTH - 1] == 0;
}

static void
keep_or_send(char type, const char *s, size_t len)
{
	if (is_late_answer(type, s, len))
		return;
	if (type == 'd' && len > XLOGDATA_HEADER && s[0] == 'w' && is_foreign_message(s, len))
	{
		if (len >= ECM_GIANT_BYTES)
			tell_of_giant(s);
		return;
	}
	keeping = may_keep(type, s, len);
	kept_bytes = keeping ? kept_bytes + len : 0;
	flushes_asked = 0;
	giant_pending |= len >= ECM_GIANT_BYTES;
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

	message_prefix = MemoryContextStrdup(TopMemoryContext, ecm_message_prefix());

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
	ecm_watch_unsendable();
	if (setsockopt(MyProcPort->sock, SOL_SOCKET, SO_SNDBUF,
				   (char *) &size, sizeof(size)) != 0)
		ereport(LOG,
				(errmsg("could not widen the send buffer: %m")));
	PG_RETURN_VOID();
}
