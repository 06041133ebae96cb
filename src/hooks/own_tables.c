/*-------------------------------------------------------------------------
 *
 * own_tables.c
 *	  Keeps others away from what our tables have out of line, and from rewriting
 *	  them in a way that loses rows.
 *
 * Row-level security hides our tables' rows (shape logs have rows of tables that a role
 * may not read) from roles that may read all tables, such as members of
 * pg_read_all_data.  But a row's large values are in a TOAST table, which can be
 * selected from by its name, and has no row-level security.  So the hook that checks a
 * query's permissions refuses our TOAST tables to all but superusers.
 *
 * And REPACK (CONCURRENTLY) learns by logical decoding what is written to a table
 * while it copies it.  It would lose that of ours, which are hidden from decoding.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "base/compat.h"
#include "base/table_writer.h"
#include "hooks/own_tables.h"

static ExecutorCheckPerms_hook_type next_hook;

/* A TOAST table's name has the OID of the table that it is for. */
static bool
is_our_toast(Oid relid)
{
	char	   *name = get_rel_name(relid);
	Oid			schema = get_namespace_oid(ECM_SCHEMA, true);
	Oid			table;

	return name != NULL && OidIsValid(schema) &&
		sscanf(name, "pg_toast_%u", &table) == 1 &&
		get_rel_namespace(table) == schema;
}

/* Called for each query; of other tables it looks at the kind only. */
static bool
check_perms(ECM_CHECK_PERMS_PARAMS)
{
	ListCell   *lc;

	if (next_hook != NULL && !next_hook(ECM_CHECK_PERMS_ARGS))
		return false;
	foreach(lc, tables)
	{
		RangeTblEntry *rte = lfirst_node(RangeTblEntry, lc);

		if (rte->rtekind != RTE_RELATION || rte->relkind != RELKIND_TOASTVALUE ||
			superuser() || !is_our_toast(rte->relid))
			continue;
		if (report)
			aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_TABLE, get_rel_name(rte->relid));
		return false;
	}
	return true;
}

void
ecm_own_tables_check_repack(Node *stmt)
{
	RangeVar   *table = ecm_repacked_concurrently(stmt);
	Oid			relid = table ? RangeVarGetRelid(table, NoLock, true) : InvalidOid;

	if (OidIsValid(relid) &&
		get_rel_namespace(relid) == get_namespace_oid(ECM_SCHEMA, true))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot execute REPACK (CONCURRENTLY) on table \"%s\" of electric_cm",
						get_rel_name(relid)),
				 errdetail("It is hidden from logical decoding, so what is written to it meanwhile would be lost."),
				 errhint("REPACK %s",
						 quote_qualified_identifier(ECM_SCHEMA, get_rel_name(relid)))));
}

void
ecm_own_tables_init(void)
{
	next_hook = ExecutorCheckPerms_hook;
	ExecutorCheckPerms_hook = check_perms;
}
