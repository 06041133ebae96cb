/*-------------------------------------------------------------------------
 *
 * text.c
 *	  Texts: copied into fields, made fit to be shown, quoted.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "base/text.h"

void
ecm_copy_text(char *to, size_t size, const char *from)
{
	int			len;

	if (from == NULL)
		from = "";
	len = pg_mbcliplen(from, (int) strlen(from), (int) size - 1);
	memmove(to, from, len);
	to[len] = '\0';
}

char *
ecm_valid_text(const char *text)
{
	char	   *copy = pstrdup(text);
	int			client = pg_get_client_encoding();
	bool		valid = pg_verifymbstr(copy, (int) strlen(copy), true);

	/*
	 * a database with SQL_ASCII takes any bytes, and does not convert them
	 * for the client either: what the client gets must be valid in the
	 * client's encoding
	 */
	if (valid && GetDatabaseEncoding() == PG_SQL_ASCII && client != PG_SQL_ASCII)
		valid = pg_verify_mbstr(client, copy, (int) strlen(copy), true);
	if (!valid)
		for (char *p = copy; *p; p++)
			if (IS_HIGHBIT_SET(*p))
				*p = '?';
	return copy;
}

char *
ecm_size_text(int64 bytes)
{
	return text_to_cstring(DatumGetTextPP(DirectFunctionCall1(pg_size_pretty,
															  Int64GetDatum(bytes))));
}

char *
ecm_quote_literal(const char *text)
{
	return quote_literal_cstr(text);
}

/*
 * Quotes an identifier, whether it needs quotes or not.  Clients compare the
 * keys in a shape's log, which have the table's name, as texts;
 * quote_identifier() would quote a name or not depending on the version's
 * keywords.
 */
static char *
quote_always(const char *name)
{
	StringInfoData out;

	initStringInfo(&out);
	appendStringInfoChar(&out, '"');
	for (; *name; name++)
	{
		if (*name == '"')
			appendStringInfoChar(&out, '"');
		appendStringInfoChar(&out, *name);
	}
	appendStringInfoChar(&out, '"');
	return out.data;
}

char *
ecm_relation_name(Oid relation)
{
	char	   *schema = get_namespace_name(get_rel_namespace(relation));
	char	   *name = get_rel_name(relation);

	return schema == NULL || name == NULL ? NULL :
		psprintf("%s.%s", quote_always(schema), quote_always(name));
}
