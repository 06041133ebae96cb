/*-------------------------------------------------------------------------
 *
 * server_identity.h
 *	  Does a connection lead back into this server and this database?
 *
 *-------------------------------------------------------------------------
 */
#ifndef ECM_SERVER_IDENTITY_H
#define ECM_SERVER_IDENTITY_H

#include "postgres.h"

#include "base/failure.h"
#include "connection/conn.h"

/*
 * A query that tells which server and database a connection leads to, and
 * whether its answer says: here.  If not, failure is FATAL.
 */
extern const char *ecm_whereabouts_sql(void);
extern bool ecm_leads_here(const EcmConn *conn, EcmStepFailure *failure);

#endif							/* ECM_SERVER_IDENTITY_H */
