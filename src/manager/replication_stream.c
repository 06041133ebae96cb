/*-------------------------------------------------------------------------
 *
 * replication_stream.c
 *	  The stream: reading it, telling the walsender how far we are, and
 *	  noticing that nothing comes any more.
 *
 * "Flushed" is the position up to which all consumers' logs are durable.  As far as
 * rows say so, too (manager_position.c), feedback acknowledges it, and the slot may then
 * advance to it.  Feedback goes out also
 * while a consumer's queue is full and the stream is not read, or the walsender
 * would end the connection after its timeout.
 *
 * A quiet stream and a dead one look the same.  So feedback asks for an answer now
 * and then, and a walsender that does not answer within its timeout is given up,
 * unless it can be seen to work (a large transaction is decoded without reading
 * the socket) or to wait for a lock.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "lib/stringinfo.h"
#include "libpq/pqformat.h"
#include "miscadmin.h"
#include "storage/standby.h"
#include "utils/timestamp.h"

#include "base/backend.h"
#include "base/settings.h"
#include "connection/conn.h"
#include "manager/consumer_queues.h"
#include "manager/manager.h"
#include "manager/stack_report.h"
#include "slot/slot.h"

/* A stream whose walsender has not had the slot for so long has lost it. */
#define OTHER_USER_MS		1000
/*
 * Feedback is sent at the latest after a third of the walsender's timeout, or after
 * this, whichever is less.
 */
#define MAX_FEEDBACK_MS			15000
/* A stream that is so far beyond the place of its loss is beyond it for good. */
#define PROGRESS_BYTES			(16 * 1024 * 1024)
/* A new stream may catch up for so long before a limit on WAL drops the slot. */
#define CATCH_UP_MS				15000
/* Progress is acknowledged this soon at the latest. */
#define ACKNOWLEDGE_MS			500
/* Limits for asking the walsender how far it is, while somebody waits. */
#define ASK_MIN_MS				1
#define ASK_MAX_MS				100
/* Limits for looking whether the stream can begin behind a giant. */
#define RENEW_MIN_MS			1000
#define RENEW_MAX_MS			60000
/* ... and the least time from one such new stream to the next. */
#define RENEW_PAUSE_MS			15000
/* One round reads at most this much, then looks after everything else. */
#define ROUND_BYTES				(4 * 1024 * 1024)
/*
 * The walsender sends in pieces, and waking up for each costs more than decoding it.
 * So after a round that has read more than BUSY_BYTES, the stream is left alone for
 * BUSY_PAUSE_MS.  A round that has read less is followed by a read at once.
 */
#define BUSY_BYTES				(32 * 1024)
#define BUSY_PAUSE_MS			1

/* --------------------------------------------------------------- stream -- */

/*
 * An SQLSTATE such as 55000 can mean many things here.  So whether the slot must be made
 * anew is decided by a look at it: it is gone, invalidated, or needs WAL that has been
 * removed.
 */
void
ecm_replication_judge_slot(const Replication *rep, EcmStepFailure *failure)
{
	EcmSlotFacts facts;

	if (failure->kind == ECM_ERROR_FATAL)
		return;
	if (!ecm_slot_lookup(rep->slot, &facts) || facts.invalidation != NULL ||
		(ecm_error_is_file_missing(failure->err.sqlstate) &&
		 ecm_slot_wal_is_gone(facts.restart_lsn)))
		failure->kind = ECM_ERROR_RECREATE;
}

/*
 * Fills 'failure' with the error that the stream has ended with; returns -1 for the
 * callers' convenience.
 */
static int
stream_failed(Replication *rep, EcmStepFailure *failure)
{
	ecm_failure_set(failure, ecm_conn_error(rep->conn), ECM_CONTEXT_STREAM);
	ecm_error_hide_row(&failure->err);
	ecm_replication_judge_slot(rep, failure);
	return -1;
}

/* Reads from the socket what is there.  False: connection lost, failure filled. */
static bool
read_input(Replication *rep, EcmStepFailure *failure)
{
	if (ecm_conn_read_input(rep->conn))
		return true;
	(void) stream_failed(rep, failure);
	return false;
}

/*
 * The next message of pgoutput that libpq has in memory: 1, *data is valid until the
 * next call; 0: there is none; -1: the stream has ended, failure filled.  Keepalives
 * are noted in rep->stream on the way.
 */
static int
next_received(Replication *rep, const char **data, int *len,
			  EcmStepFailure *failure)
{
	for (;;)
	{
		char	   *message;
		int			n = ecm_conn_copy_next(rep->conn, &message);
		StringInfoData in;
		XLogRecPtr	wal_end;

		if (n == -1)
			return 0;
		if (n < 0)
			return stream_failed(rep, failure);

		in.data = message;
		in.len = n;
		in.maxlen = -1;
		in.cursor = 0;

		switch (n > 0 ? message[0] : 0)
		{
			case 'w':			/* dataStart, walEnd, sendTime, payload */
				if (n < 25)
					break;
				*data = message + 25;
				*len = n - 25;
				return 1;
			case 'k':			/* walEnd, sendTime, replyRequested */
				if (n < 18)
					break;
				in.cursor = 1;
				wal_end = pq_getmsgint64(&in);
				rep->stream.keepalive_lsn = Max(rep->stream.keepalive_lsn, wal_end);
				if (message[17])
					rep->stream.reply_requested = true;
				continue;
			default:
				break;
		}
		ecm_error_set(&failure->err, "08P01",
					  "unexpected message in the replication stream", "", "");
		failure->kind = ECM_ERROR_RETRY;
		return -1;
	}
}

/*
 * Sends a standby status update.  received: end of what has come; flushed and
 * acknowledged: see the head of this file.  ask: the walsender shall answer with a
 * keepalive at once, which tells how far it is.  False: connection lost, failure
 * filled.
 */
static bool
send_feedback(Replication *rep, XLogRecPtr received, XLogRecPtr flushed,
			  XLogRecPtr acknowledged, bool ask, EcmStepFailure *failure)
{
	StringInfoData out;
	EcmTime		now = ecm_now();
	bool		ok;

	initStringInfo(&out);
	pq_sendbyte(&out, 'r');
	pq_sendint64(&out, received);
	pq_sendint64(&out, acknowledged);
	pq_sendint64(&out, flushed);
	pq_sendint64(&out, ecm_wall_clock());
	pq_sendbyte(&out, ask ? 1 : 0);
	ok = ecm_conn_copy_send(rep->conn, out.data, out.len);
	pfree(out.data);
	if (!ok)
	{
		(void) stream_failed(rep, failure);
		return false;
	}
	rep->stream.reply_requested = false;
	rep->stream.acknowledged_lsn = Max(rep->stream.acknowledged_lsn, acknowledged);
	rep->stream.told_lsn = Max(rep->stream.told_lsn, flushed);
	rep->stream.last_feedback = now;
	if (ask)
		rep->stream.last_asked = now;
	if (ask && rep->stream.asked_at == 0)
	{
		rep->stream.asked_at = now;
		(void) ecm_backend_look(rep->stream.pid, &rep->stream.asked_look);
	}
	return true;
}

/* When the walsender counts as silent; 0: it owes no sign of life. */
static EcmTime
silence_deadline(const Replication *rep)
{
	return rep->stream.asked_at != 0 ? ecm_later(rep->stream.asked_at, rep->sender_timeout_ms) : 0;
}

/*
 * Can the walsender not be expected to answer?  It answers when it reads its socket,
 * which it does not while it decodes a large transaction, or while it waits for
 * somebody who has locked a catalog.  'before': an earlier look at it.
 */
static bool
may_be_silent_since(const Replication *rep, const EcmBackendLook *before)
{
	EcmBackendLook look;

	if (!ecm_backend_look(rep->stream.pid, &look))
		return false;
	return ecm_backend_waits_for_lock(&look) || ecm_backend_works(before, &look);
}

void
ecm_replication_look_at_walsender(Replication *rep)
{
	(void) ecm_backend_look(rep->stream.pid, &rep->stream.last_look);
}

bool
ecm_replication_may_be_silent(const Replication *rep)
{
	return may_be_silent_since(rep, &rep->stream.last_look);
}

void
ecm_replication_set_silent(const Replication *rep, int64 us, EcmStepFailure *failure)
{
	(void) ecm_failure_make(failure, ECM_ERROR_RETRY, "08006",
							psprintf("walsender PID %d has not answered for %d s",
									 rep->stream.pid, (int) (us / USECS_PER_SEC)),
							"It hangs, or something between server and server has stopped forwarding.",
							ecm_connection[0] != '\0' ?
							"See what electric_cm.connection leads through, if this happens again." : "");
}

/*
 * Has the walsender been asked for a sign of life wal_sender_timeout ago or longer,
 * has nothing come since, and can it be expected to answer?  Then failure is filled.
 */
static bool
is_silent(Replication *rep, EcmTime now, EcmStepFailure *failure)
{
	if (rep->stream.asked_at != 0 && ecm_conn_heard_at(rep->conn) >= rep->stream.asked_at)
		rep->stream.asked_at = 0;
	if (rep->stream.asked_at == 0 || !ecm_has_passed(rep->stream.asked_at, now, rep->sender_timeout_ms))
		return false;
	if (may_be_silent_since(rep, &rep->stream.asked_look))
	{
		rep->stream.asked_at = 0;	/* it will be asked again */
		return false;
	}
	ecm_replication_set_silent(rep, now - rep->stream.asked_at, failure);
	return true;
}

bool
ecm_replication_has_lost_slot(Replication *rep, bool at_once, EcmStepFailure *failure)
{
	EcmTime		now = ecm_now();
	int			pid = ecm_replication_slot_pid(rep);

	if (pid == rep->stream.pid)
	{
		rep->stream.other_user_at = 0;
		return false;
	}
	if (rep->stream.other_user_at == 0)
		rep->stream.other_user_at = now;
	if (!at_once && !ecm_has_passed(rep->stream.other_user_at, now, OTHER_USER_MS))
		return false;
	(void) ecm_failure_make(failure, ECM_ERROR_RETRY, "08006",
							psprintf("walsender PID %d has gone, and nothing was heard of that",
									 rep->stream.pid),
							"Something between server and server has stopped forwarding.",
							ecm_connection[0] != '\0' ?
							"See what electric_cm.connection leads through, if this happens again." : "");
	return true;
}

bool
ecm_replication_slot_is_held_up(const Replication *rep)
{
	return rep->former_pid != 0 && ecm_replication_slot_pid(rep) == rep->former_pid;
}

/* The longest time from one feedback to the next, in ms. */
static int
feedback_interval(const Replication *rep)
{
	return Min(rep->sender_timeout_ms / 3, MAX_FEEDBACK_MS);
}

/* ------------------------------------------------------------ its loss -- */

XLogRecPtr
ecm_manager_flushed_lsn(const Manager *m)
{
	XLogRecPtr	durable = ecm_queues_durable_lsn(m->replication.stream.keepalive_lsn);

	return Max(durable, m->replication.stream.acknowledged_lsn);
}

/*
 * While the stream was lost, or the stack restarted, the slot has retained more WAL
 * and may be beyond a limit.  The next stream gets CATCH_UP_MS to catch up before the
 * limit counts.  Only if the slot has moved since the last time, though: a stream
 * that is lost again and again would put off the limit for ever.
 */
bool
ecm_manager_may_catch_up(Manager *m, EcmTime now)
{
	EcmSlotFacts facts;

	if (!ecm_slot_lookup(m->stack->slot.name, &facts) ||
		(facts.restart_lsn == m->loss.slot_restart_lsn &&
		 facts.confirmed_flush_lsn == m->loss.slot_confirmed_lsn))
		return false;
	m->loss.slot_restart_lsn = facts.restart_lsn;
	m->loss.slot_confirmed_lsn = facts.confirmed_flush_lsn;
	m->loss.catches_up_until = ecm_later(now, CATCH_UP_MS);
	return true;
}

/*
 * Notes how far the stream had come when it was lost.  If it had not got beyond an
 * earlier loss (state.behind), that one's end of WAL goes on counting.
 */
void
ecm_manager_note_loss(Manager *m)
{
	XLogRecPtr	flushed = ecm_manager_flushed_lsn(m);

	if (!m->state.behind)
		m->loss.at = InvalidXLogRecPtr;
	m->loss.at = Max(m->loss.at, flushed);
	if (!m->state.behind)
		m->loss.end = Min(GetFlushRecPtr(NULL), ecm_end_of_wal());
}

void
ecm_manager_forget_stream(Manager *m)
{
	m->flow.pause_until = 0;
	m->flow.congested = false;
	m->flow.last_word = false;
	m->flow.last_word_asked = 0;
	m->renewal.giant = InvalidXLogRecPtr;	/* the next stream may meet it
											 * again */
}

/* --------------------------------------------------- parts of the round -- */

/* As next_received(), but reads from the socket if libpq has nothing in memory. */
static int
next_message(Replication *rep, const char **data, int *len,
			 EcmStepFailure *failure)
{
	int			n = next_received(rep, data, len, failure);

	if (n != 0)
		return n;
	if (!read_input(rep, failure))
		return -1;
	return next_received(rep, data, len, failure);
}

/*
 * Part of the round: reads what has come and hands it on to the consumers, as long as
 * their queues have room.  A message that a queue refuses is kept by
 * consumer_queues.c; nothing is read before that is delivered.
 */
bool
ecm_manager_read_stream(Manager *m, EcmTime now, RoundInput *in)
{
	StreamFlow *flow = &m->flow;
	Size		bytes = 0;

	if (!m->state.streaming_up)
		return false;
	flow->congested = !ecm_queues_flush();
	if (flow->congested)
	{
		flow->pause_until = 0;	/* the consumer wakes us when it has read */
		m->replication.stream.asked_at = 0; /* we would not hear the answer */
	}
	if (flow->congested && flow->closed_unread)
	{
		/* what is left unread in the socket comes again in the next stream */
		(void) ecm_failure_make(&in->failure, ECM_ERROR_RETRY, "08006",
								"the replication stream has ended",
								"It was not read from, since a consumer was behind.",
								"");
		return round_failed(in, ECM_INPUT_REPLICATION_LOST);
	}
	if (flow->congested || now < flow->pause_until)
		return false;

	while (bytes < ROUND_BYTES && !flow->congested)
	{
		const char *data;
		int			len;
		int			n = next_message(&m->replication, &data, &len, &in->failure);

		if (n < 0)
			return round_failed(in, ECM_INPUT_REPLICATION_LOST);
		if (n == 0)
			break;
		bytes += len;
		flow->congested = !ecm_queues_feed(data, len);
	}
	if (!flow->congested)
		flow->congested = !ecm_queues_flush();
	flow->pause_until = bytes >= BUSY_BYTES && !flow->congested ?
		ecm_later(now, BUSY_PAUSE_MS) : 0;
	return false;
}

/*
 * Is the walsender to be asked now how far it is, for the sake of a session that waits
 * for a position, or of a doubtful stream?  A stream without changes for us would
 * not tell.  It is asked at once, then after 1 ms, 2 ms, ... and at last each 100 ms.
 */
static bool
must_ask(Manager *m, EcmTime now, XLogRecPtr flushed)
{
	XLogRecPtr	target = ecm_stack_awaited_lsn(m->stack_index);

	if (m->state.behind)
		target = Max(target, m->loss.end);

	/* the target may lie in the future, set by a session that has left since */
	if (Min(target, GetFlushRecPtr(NULL)) <= flushed)
	{
		m->flow.ask_at = 0;
		return false;
	}
	ecm_queues_expect_progress();
	if (target > m->flow.asked_for || m->flow.ask_at == 0)
	{
		m->flow.asked_for = Max(m->flow.asked_for, target);
		m->flow.ask_delay_ms = ASK_MIN_MS;
		m->flow.ask_at = now;
	}
	if (now < m->flow.ask_at)
		return false;
	ecm_queues_poke();
	m->flow.ask_at = ecm_later(now, m->flow.ask_delay_ms);
	m->flow.ask_delay_ms = Min(m->flow.ask_delay_ms * 2, ASK_MAX_MS);
	return true;
}

/*
 * When the next feedback is due; sooner, if there is progress to tell.  The walsender
 * says how far it is only after it has been told that what it said last is done with.
 */
static EcmTime
feedback_due(const Replication *rep, XLogRecPtr flushed, XLogRecPtr acknowledged)
{
	int			ms = feedback_interval(rep);

	if (flushed > rep->stream.told_lsn || acknowledged > rep->stream.acknowledged_lsn)
		ms = Min(ms, ACKNOWLEDGE_MS);
	return ecm_later(rep->stream.last_feedback, ms);
}

/* When a walsender of which nothing is heard is to be asked for a sign of life. */
static EcmTime
sign_of_life_due(const Replication *rep)
{
	return ecm_later(Max(rep->stream.last_asked,
						 ecm_conn_heard_at(rep->conn)),
					 feedback_interval(rep));
}

/*
 * Is it time to ask for a sign of life?  early: feedback is sent anyway, so the
 * question goes along up to half an interval before it is due.
 */
static bool
must_hear(const Replication *rep, EcmTime now, bool early)
{
	return now >= sign_of_life_due(rep) -
		(early ? feedback_interval(rep) * INT64CONST(500) : 0);
}

/*
 * Has the stream got beyond where it was lost: by a whole transaction that is durable,
 * by PROGRESS_BYTES, or up to what was the end of WAL then?  A position that is a
 * little farther on, by a keepalive, proves nothing: the walsender may fail at the
 * very next change, as before.
 */
static bool
is_beyond_loss(const Manager *m, XLogRecPtr flushed)
{
	XLogRecPtr	received = ecm_queues_received_lsn();

	return flushed >= m->loss.end || (received > m->loss.at && flushed >= received) ||
		flushed > m->loss.at + PROGRESS_BYTES;
}

/* Part of the round: tells the machine that a doubtful stream is beyond its loss. */
bool
ecm_manager_note_progress(Manager *m, EcmTime now pg_attribute_unused(),
						  RoundInput *in)
{
	if (m->state.streaming_up && m->state.behind)
		ecm_queues_expect_progress();
	if (!m->state.streaming_up || !m->state.behind || m->flow.congested ||
		!is_beyond_loss(m, ecm_manager_flushed_lsn(m)))
		return false;
	in->type = ECM_INPUT_PROGRESS;
	return true;
}

/*
 * Part of the round: tells the walsender what is durable, if that is due, and shows
 * it in the entry.  Finds a walsender that is silent.
 */
bool
ecm_manager_give_feedback(Manager *m, EcmTime now, RoundInput *in)
{
	Replication *rep = &m->replication;
	XLogRecPtr	flushed;
	XLogRecPtr	received;
	XLogRecPtr	acknowledged;
	bool		due;
	bool		ask;

	if (!m->state.streaming_up)
		return false;
	flushed = ecm_manager_flushed_lsn(m);
	received = Max(ecm_queues_received_lsn(), rep->stream.keepalive_lsn);
	received = Max(received, flushed);
	acknowledged = Max(ecm_manager_acknowledgeable_lsn(m, now, flushed), rep->stream.acknowledged_lsn);
	due = now >= feedback_due(rep, flushed, acknowledged) || rep->stream.reply_requested;
	ask = must_ask(m, now, flushed) || must_hear(rep, now, due) ||
		m->flow.last_word;
	m->flow.last_word = false;
	if (ask || due)
	{
		/* also if it gets lost: it may have come all the same */
		ecm_manager_note_acknowledged(m, acknowledged);
		if (!send_feedback(rep, received, flushed, acknowledged, ask, &in->failure))
			return round_failed(in, ECM_INPUT_REPLICATION_LOST);
	}
	if (is_silent(rep, now, &in->failure))
		return round_failed(in, ECM_INPUT_REPLICATION_LOST);
	ecm_report_positions(received, flushed, rep->stream.acknowledged_lsn,
						 ecm_queues_last_commit_at());
	ecm_manager_wake_at(m, feedback_due(rep, flushed, acknowledged));

	/*
	 * what consumers have is to be told, too, though they don't wake us for
	 * it
	 */
	if (ecm_queues_received_lsn() > flushed)
		ecm_manager_wake_at(m, ecm_later(now, ACKNOWLEDGE_MS));
	ecm_manager_wake_at(m, sign_of_life_due(rep));
	ecm_manager_wake_at(m, m->flow.ask_at);
	ecm_manager_wake_at(m, silence_deadline(rep));
	return false;
}

/*
 * Part of the round: opens the connection anew behind a giant (ECM_GIANT_BYTES), which
 * has left this process or the walsender with memory that they give back only then.
 * Not before the slot's restart_lsn is beyond the giant, or the new walsender would
 * decode it again.  The slot needs records of running transactions to get there, so
 * one is written now and then, ever more seldom.
 */
bool
ecm_manager_renew_stream(Manager *m, EcmTime now, RoundInput *in)
{
	StreamRenewal *renewal = &m->renewal;
	XLogRecPtr	giant = ecm_queues_giant_lsn();
	EcmSlotFacts facts;

	if (!m->state.streaming_up || XLogRecPtrIsInvalid(giant))
		return false;
	if (giant != renewal->giant)
	{
		renewal->giant = giant;
		renewal->delay_ms = renewal->renewed_at != 0 &&
			!ecm_has_passed(renewal->renewed_at, now, RENEW_PAUSE_MS) ?
			RENEW_PAUSE_MS : RENEW_MIN_MS;
		renewal->look_at = ecm_later(now, renewal->delay_ms);
	}
	if (now >= renewal->look_at)
	{
		renewal->delay_ms = Min(renewal->delay_ms * 2, RENEW_MAX_MS);
		renewal->look_at = ecm_later(now, renewal->delay_ms);
		if (!ecm_slot_lookup(m->stack->slot.name, &facts) ||
			facts.restart_lsn <= giant)
			(void) LogStandbySnapshot();
		else if (m->flow.congested || ecm_queues_in_transaction())
			renewal->look_at = ecm_later(now, RENEW_MIN_MS / 10);
		else
		{
			ereport(LOG,
					(errmsg("electric_cm in database \"%s\": the replication connection is opened anew, since a row or message of more than %d MB has made it large",
							m->stack->datname, ECM_GIANT_BYTES / (1024 * 1024))));
			renewal->renewed_at = now;
			in->type = ECM_INPUT_REPLICATION_LOST;
			return true;
		}
	}
	ecm_manager_wake_at(m, renewal->look_at);
	return false;
}
