/*-------------------------------------------------------------------------
 *
 * wal_scan.h
 *	  Reading the server's own WAL, record by record.
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_WAL_SCAN_H
#define ECM_WAL_SCAN_H

#include "postgres.h"

#include "access/xlogreader.h"

/* False: that was enough. */
typedef bool (*EcmWalVisit) (XLogReaderState *reader, void *arg);

/*
 * Visits each record that begins at or after "from" and before "to", as far as
 * the WAL has been flushed.  Result: the end of the last record that was read.
 * ERROR if it can't be read.
 */
extern XLogRecPtr ecm_wal_scan(XLogRecPtr from, XLogRecPtr to, EcmWalVisit visit, void *arg);

#endif							/* ECM_WAL_SCAN_H */
