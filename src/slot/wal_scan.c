/*-------------------------------------------------------------------------
 *
 * wal_scan.c
 *	  Reading the server's own WAL, record by record.
 *
 * The reader does not wait for WAL to come: it ends where the WAL that is on
 * disk does.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "access/xlogutils.h"
#include "miscadmin.h"

#include "base/compat.h"
#include "slot/wal_scan.h"

XLogRecPtr
ecm_wal_scan(XLogRecPtr from, XLogRecPtr to, EcmWalVisit visit, void *arg)
{
	ReadLocalXLogPageNoWaitPrivate private = {false};
	XLogReaderState *reader = XLogReaderAllocate(wal_segment_size, NULL,
												 XL_ROUTINE(.page_read = read_local_xlog_page_no_wait,
															.segment_open = wal_segment_open,
															.segment_close = wal_segment_close),
												 &private);
	XLogRecPtr	read_to;
	char	   *error;

	if (reader == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("out of memory")));
	if (XLogRecPtrIsInvalid(ecm_find_next_record(reader, from, &error)) &&
		!private.end_of_wal)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("could not find a WAL record after %X/%X%s%s",
						LSN_FORMAT_ARGS(from),
						error ? ": " : "", error ? error : "")));
	while (!private.end_of_wal && reader->EndRecPtr < to)
	{
		CHECK_FOR_INTERRUPTS();
		if (XLogReadRecord(reader, &error) == NULL)
		{
			if (private.end_of_wal)
				break;
			ereport(ERROR,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("could not read WAL at %X/%X%s%s",
							LSN_FORMAT_ARGS(reader->EndRecPtr),
							error ? ": " : "", error ? error : "")));
		}
		if (!visit(reader, arg))
			break;
	}
	read_to = reader->EndRecPtr;
	XLogReaderFree(reader);
	return read_to;
}
