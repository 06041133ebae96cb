/*-------------------------------------------------------------------------
 *
 * walsender.c
 *	  What our own walsender does differently: it sends in large pieces and no
 *	  messages but our own, and is never a synchronous standby.
 *
 * The manager calls tune_walsender() in its replication session, before the slot
 * is created and again before the stream starts.  The session is then a walsender
 * like any other, whose PqCommMethods (libpq's functions for sending) are ours.
 *
 * A walsender hands each row to the kernel by itself.  Two thirds of the time
 * that it needs for a busy stream are those system calls, and each of them
 * wakes the reader for a hundred bytes.  Ours keeps messages in libpq's buffer
 * until their transaction is complete.  When it is far behind, so that more is
 * about to follow, it keeps them longer, up to KEEP_BYTES.
 *
 * No message is kept while the walsender waits.  Within a transaction, decoding goes
 * from its begin to its commit without waiting for anything but the disk.  After a
 * commit, the walsender tries to flush after each WAL record and before it waits
 * for more WAL, and by then it is not far behind.  A message that is no change in a
 * transaction (a keepalive, an error, the end of the stream) is sent at once, and
 * all before it with it.  There is one exception: the commit record of a large
 * transaction may take minutes to decode, and the walsender does not try to flush
 * meanwhile.  So complete transactions are kept only while none that is large is
 * being gathered in the reorder buffer.
 *
 * A walsender that keeps up with many small transactions wakes up for each of them, and
 * so do the manager and the consumer in turn.  While they come by the thousand, ours
 * moves at a steady pace instead, as network cards moderate their interrupts: where it
 * would wait for WAL, it sleeps until it is time to send again, deaf to its latch.
 *
 * A walsender sends a keepalive each time that it begins to wait for WAL, unless all
 * is acknowledged.  That is four of them for a small transaction, and each one
 * wakes the manager.  Ours sends none that tells what is asked for soon anyway.
 *
 * Anybody may put logical messages of up to a gigabyte into the WAL.  Messages that
 * are not the stack's are dropped here, so that neither the socket nor the manager
 * has to carry them.
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
#include "storage/latch.h"
#include "utils/guc.h"
#include "utils/wait_event.h"

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
#include "base/wait_event.h"
#include "walsender/unsendable.h"

PG_FUNCTION_INFO_V1(electric_cm_tune_walsender);

/* Messages are kept until there are so many bytes of them. */
#define KEEP_BYTES			(32 * 1024)

/* With more WAL than this still to be decoded, complete transactions are kept ... */
#define FAR_BEHIND_BYTES	(64 * 1024)

/*
 * ... unless the walsender has tried to flush so many times since the last message:
 * these WAL records had nothing for us, and the next one may be far away.
 */
#define KEEP_RECORDS		64

/*
 * If the reorder buffer has more than this in memory of changes of transactions
 * that are not complete yet (a change takes some 100 bytes there, without its
 * row), the next commit may take long.  So it may if it has written changes to
 * disk; their files are looked for this often at most.
 */
#define GATHERED_BYTES		(256 * 1024)
#define LOOK_FOR_SPILL_MS	20

/*
 * Transactions come by the thousand if the last PACE_COMMITS of them took less than
 * PACE_COMMITS times PACE_COMMIT_US.  Then messages are sent every PACE_US only.
 */
#define PACE_COMMITS		4
#define PACE_COMMIT_US		1000
#define PACE_US				2000

/* The kernel's buffer: so much may be sent before the manager reads it. */
#define SEND_BUFFER_BYTES	(4 * 1024 * 1024)

/* A row change in CopyData: 'w', three numbers of 8 bytes, pgoutput's message. */
#define XLOGDATA_HEADER		25

/* A keepalive: 'k', two numbers of 8 bytes, whether an answer is wanted. */
#define KEEPALIVE_LENGTH	18

/* This walsender; set up by send_in_large_pieces(). */
static struct
{
	const PQcommMethods *server;	/* the server's own methods; NULL: not
									 * replaced yet */
	PQcommMethods ours;			/* the same, but for the functions below */
	char	   *message_prefix; /* of the stack's messages */

	/* messages that were handed to libpq's buffer, and are not sent yet */
	bool		in_transaction; /* the last change was in one that goes on */
	bool		keeping;		/* the server's wish to flush is ignored */
	Size		kept_bytes;		/* since the last message that was not kept */
	int			flushes_asked;	/* ignored since the last message */
	bool		giant_pending;	/* some of a giant message is still to be sent */

	/* the pace of many small transactions: must_pace() */
	struct
	{
		EcmTime		commits[PACE_COMMITS];	/* when the last ones were handed
											 * over */
		int			next;		/* the oldest of these */
		EcmTime		sent_at;	/* messages, the last time */
		Size		unsent_bytes;	/* since then */
		bool		urgent;		/* there are some that must not wait */
		bool		message_put;	/* ... and some since flushing was asked
									 * for */
		XLogRecPtr	asked_at_lsn;	/* MyWalSnd->sentPtr, when it was */
		bool		holding;	/* the server's wish to flush was ignored */
	}			pace;

	/* as of the last message that was sent or kept */
	XLogRecPtr	told_lsn;		/* the position that it had */
	TimestampTz feedback_at;	/* when the feedback before it was written */

	/* the reorder buffer of this session's decoding */
	MemoryContext changes;		/* its changes are in it; NULL: not found yet */
	MemoryContextCallback changes_callback; /* forgets that */
	EcmTime		spill_looked_at;	/* for files that it has written; 0: never */
	bool		spilled;		/* there were some then */
}			sender;

static bool
is_far_behind(void)
{
	return GetFlushRecPtr(NULL) > MyWalSnd->sentPtr + FAR_BEHIND_BYTES;
}

/* ------------------------------------------------- what is being gathered -- */

/* The context is deleted with the decoding that it belongs to. */
static void
forget_changes(void *arg pg_attribute_unused())
{
	sender.changes = NULL;
}

/* The descendant of that name; NULL: there is none. */
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

/*
 * Has the reorder buffer written any transaction to disk that is not complete yet?
 * As of the last look, which may be LOOK_FOR_SPILL_MS old.  In doubt, yes: then
 * messages are sent sooner, and nothing else is lost.
 */
static bool
has_spilled(void)
{
	EcmTime		now = ecm_now();
	char		path[MAXPGPATH];
	DIR		   *dir;
	struct dirent *entry;

	if (sender.spill_looked_at != 0 &&
		!ecm_has_passed(sender.spill_looked_at, now, LOOK_FOR_SPILL_MS))
		return sender.spilled;
	sender.spill_looked_at = now;
	sender.spilled = true;
	if (MyReplicationSlot == NULL)
		return true;
	snprintf(path, sizeof(path), "pg_replslot/%s",
			 NameStr(MyReplicationSlot->data.name));
	dir = AllocateDir(path);
	if (dir == NULL)
		return true;
	sender.spilled = false;
	while (!sender.spilled && (entry = ReadDirExtended(dir, path, LOG)) != NULL)
		sender.spilled = strncmp(entry->d_name, "xid-", strlen("xid-")) == 0;
	FreeDir(dir);
	return sender.spilled;
}

/*
 * May the next record be the commit of a large transaction?  The server has no
 * interface for that, but the size of the memory context in which its reorder
 * buffer has changes tells.  In doubt, yes.
 */
static bool
gathers_much(void)
{
	if (sender.changes == NULL)
	{
		MemoryContext buffer = find_context(TopMemoryContext, "ReorderBuffer");

		sender.changes = buffer != NULL ? find_context(buffer, "Change") : NULL;
		if (sender.changes == NULL)
			return true;
		sender.changes_callback.func = forget_changes;
		MemoryContextRegisterResetCallback(sender.changes, &sender.changes_callback);
	}
	return MemoryContextMemAllocated(sender.changes, false) > GATHERED_BYTES ||
		has_spilled();
}

/* ---------------------------------------------------------------- sending -- */

/* Is this message one of pgoutput's, in its header? */
static bool
is_xlog_data(char type, const char *s, Size len)
{
	return type == 'd' && len > XLOGDATA_HEADER && s[0] == 'w';
}

/*
 * Is this a logical message that is not the stack's?  's' is XLogData: its header,
 * then 'M', flags (1 byte), LSN (8), prefix (terminated), length (4), contents.  Ours
 * is transactional, has the prefix, and is not too long to be parsed.
 */
static bool
is_foreign_message(const char *s, Size len)
{
	const char *prefix = s + XLOGDATA_HEADER + 1 + 1 + 8;
	const char *end = s + len;
	Size		prefix_len = strlen(sender.message_prefix) + 1;
	uint32		size;

	if (s[XLOGDATA_HEADER] != LOGICAL_REP_MSG_MESSAGE)
		return false;
	if ((s[XLOGDATA_HEADER + 1] & 1) == 0 ||	/* not transactional */
		end < prefix || (Size) (end - prefix) < prefix_len + sizeof(size) ||
		memcmp(prefix, sender.message_prefix, prefix_len) != 0)
		return true;
	memcpy(&size, prefix + prefix_len, sizeof(size));
	return pg_ntoh32(size) > ECM_MAX_MESSAGE;
}

/*
 * Sends a message of our own in place of a giant one that is dropped, with the same
 * header and LSN.  The giant has left this process with buffers as large, which
 * only a new connection gives back; the manager opens one when it is told so, see
 * ECM_GIANT_BYTES.
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
	appendBinaryStringInfo(&message, sender.message_prefix, strlen(sender.message_prefix) + 1);
	pq_sendint32(&message, strlen(text));
	appendBinaryStringInfo(&message, text, strlen(text));
	sender.server->putmessage_noblock('d', message.data, message.len);
	pfree(message.data);
	pfree(text);
}

/*
 * May this message be kept, to be sent together with later ones?  Follows the
 * boundaries of transactions on the way.
 */
static bool
may_keep(char type, const char *s, Size len)
{
	if (!is_xlog_data(type, s, len))
		return false;
	if (s[XLOGDATA_HEADER] == LOGICAL_REP_MSG_BEGIN)
		sender.in_transaction = true;
	else if (s[XLOGDATA_HEADER] == LOGICAL_REP_MSG_COMMIT)
	{
		sender.in_transaction = false;
		sender.pace.commits[sender.pace.next] = ecm_now();
		sender.pace.next = (sender.pace.next + 1) % PACE_COMMITS;
	}
	return sender.kept_bytes + len < KEEP_BYTES &&
		(sender.in_transaction || (is_far_behind() && !gathers_much()));
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
	if (sender.giant_pending && !sender.server->is_send_pending())
		sender.giant_pending = false;
	/* what wants an answer itself is sent in any case */
	return sender.giant_pending && type == 'd' && len == KEEPALIVE_LENGTH &&
		s[0] == 'k' && s[KEEPALIVE_LENGTH - 1] == 0;
}

/*
 * Is this a keepalive that can be left out?  The manager has been told a position
 * that it has not called durable yet ("apply").  As soon as it is, it will do so, and
 * the walsender then sends a keepalive with what is the position by then.  One that
 * wants an answer, or may be the answer to feedback, is sent.
 */
static bool
is_needless(char type, const char *s, size_t len)
{
	return type == 'd' && len == KEEPALIVE_LENGTH && s[0] == 'k' &&
		s[KEEPALIVE_LENGTH - 1] == 0 &&
		MyWalSnd->replyTime == sender.feedback_at && MyWalSnd->apply < sender.told_lsn;
}

/* Notes how far the manager is told by a message that the WAL has come. */
static void
note_told(char type, const char *s, size_t len)
{
	uint64		position;

	if (is_xlog_data(type, s, len))
		memcpy(&position, s + 1 + sizeof(position), sizeof(position));
	else if (type == 'd' && len == KEEPALIVE_LENGTH && s[0] == 'k')
		memcpy(&position, s + 1, sizeof(position));
	else
		return;
	sender.told_lsn = Max(sender.told_lsn, pg_ntoh64(position));
	sender.feedback_at = MyWalSnd->replyTime;
}

/* Replaces putmessage_noblock(): puts a message into libpq's buffer, or drops it. */
static void
keep_or_send(char type, const char *s, size_t len)
{
	bool		xlog_data = is_xlog_data(type, s, len);

	sender.pace.message_put |= xlog_data;
	if (is_late_answer(type, s, len) || is_needless(type, s, len))
		return;
	if (xlog_data && is_foreign_message(s, len))
	{
		if (len >= ECM_GIANT_BYTES)
			tell_of_giant(s);
		return;
	}
	sender.keeping = may_keep(type, s, len);
	sender.kept_bytes = sender.keeping ? sender.kept_bytes + len : 0;
	sender.flushes_asked = 0;
	sender.giant_pending |= len >= ECM_GIANT_BYTES;
	note_told(type, s, len);
	sender.pace.urgent |= !xlog_data;
	sender.pace.unsent_bytes += len;
	sender.server->putmessage_noblock(type, s, len);
}

/*
 * Is it too early to send what there is, since transactions come by the thousand?  The
 * server asks after each message, after each WAL record, and once more before it
 * waits for WAL: then it has neither put a message nor read a record since it asked
 * last.  In that case this sleeps until it is time to send.  The latch is set, as more
 * WAL may have come, and the server looks for that before it asks again.
 */
static bool
must_pace(void)
{
	bool		waits = !sender.pace.message_put && MyWalSnd->sentPtr == sender.pace.asked_at_lsn;
	EcmTime		due = sender.pace.sent_at + PACE_US;
	EcmTime		now;

	sender.pace.message_put = false;
	sender.pace.asked_at_lsn = MyWalSnd->sentPtr;
	if (sender.pace.unsent_bytes == 0 || sender.pace.unsent_bytes >= KEEP_BYTES ||
		sender.pace.urgent || sender.in_transaction)
		return false;
	now = ecm_now();
	if (now - sender.pace.commits[sender.pace.next] >= PACE_COMMITS * PACE_COMMIT_US)
		return false;
	if (!waits)
		/* what can be decoded at once may go along */
		return now < due + PACE_US && !gathers_much();
	if (now >= due)
		return false;
	pgstat_report_wait_start(ecm_wait_event(ECM_WAIT_GATHER));
	pg_usleep(due - now);
	pgstat_report_wait_end();
	SetLatch(MyLatch);
	return true;
}

/*
 * Replaces flush_if_writable(), which the walsender calls after each record.  0: all
 * is well, nothing had to be sent.
 */
static int
flush_unless_keeping(void)
{
	if (sender.keeping && !sender.in_transaction &&
		(sender.flushes_asked++ >= KEEP_RECORDS || !is_far_behind()))
	{
		sender.keeping = false;
		sender.kept_bytes = 0;
	}
	if (sender.keeping)
		return 0;
	sender.pace.holding = must_pace();
	if (sender.pace.holding)
		return 0;
	if (sender.pace.unsent_bytes > 0)
		sender.pace.sent_at = ecm_now();
	sender.pace.unsent_bytes = 0;
	sender.pace.urgent = false;
	return sender.server->flush_if_writable();
}

/* Replaces is_send_pending(), lest the walsender wait for the socket in vain. */
static bool
is_send_pending_unless_keeping(void)
{
	return !sender.keeping && !sender.pace.holding && sender.server->is_send_pending();
}

/* Puts our methods in place of the server's, the first time it is called. */
static void
send_in_large_pieces(void)
{
	sender.message_prefix = MemoryContextStrdup(TopMemoryContext, ecm_message_prefix());
	sender.told_lsn = InvalidXLogRecPtr;

	if (sender.server != NULL)
		return;
	sender.server = PqCommMethods;
	sender.ours = *sender.server;
	sender.ours.putmessage_noblock = keep_or_send;
	sender.ours.flush_if_writable = flush_unless_keeping;
	sender.ours.is_send_pending = is_send_pending_unless_keeping;
	PqCommMethods = &sender.ours;
}

/*
 * Keeps this walsender from being a synchronous standby.  synchronous_standby_names
 * = '*' takes any walsender for one.  Then each commit of the server would wait for
 * our acknowledgement, and be reported as safe elsewhere when it is not.  A
 * walsender goes by its own copy of the setting, which is read anew with each
 * reload, but stays if it comes from a higher place than the configuration file.
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
 * Called in our own walsender, for the rest of its life; may be repeated.  The kernel
 * charges a Unix socket's buffer several hundred bytes for each piece besides its
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
