/*-------------------------------------------------------------------------
 *
 * shape_filter.c
 *	  Checks, compiles and evaluates the where clauses of shapes.
 *
 * A superuser's process evaluates a clause in the name of the shape's owner.
 * So a clause may have only what the row filter of a publication may have:
 * nothing that users have defined, since they can change it later, and nothing
 * that depends on more than the row.  A clause is stored as text, since a node
 * tree does not survive a major version.
 *
 * Each consumer parses the text again.  By then the table may be locked, for
 * hours, or altered, while the stream is still at changes from before that.
 * So names of columns are resolved by the descriptions that are stored with
 * the clause, and the table itself is not touched.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/sysattr.h"
#include "access/transam.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "nodes/parsenodes.h"
#include "optimizer/optimizer.h"
#include "parser/parse_clause.h"
#include "parser/parse_coerce.h"
#include "parser/parse_collate.h"
#include "parser/parse_expr.h"
#include "parser/parse_node.h"
#include "parser/parse_relation.h"
#include "parser/parser.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/ruleutils.h"
#include "utils/typcache.h"

#include "base/compat.h"
#include "base/pinned_settings.h"
#include "shape/shape_filter.h"
#include "shape/shape_requirements.h"

/* ---------------------------------------------------------------- parsing -- */

/*
 * The clause is not the statement that the client has sent, so a position in
 * it is an internal one.
 */
static void
transpose_position(void *arg)
{
	int			position = geterrposition();

	if (position <= 0)
		return;
	errposition(0);
	internalerrposition(position);
	internalerrquery((const char *) arg);
}

static void
push_clause_context(ErrorContextCallback *callback, const char *clause)
{
	callback->callback = transpose_position;
	callback->arg = unconstify(char *, clause);
	callback->previous = error_context_stack;
	error_context_stack = callback;
}

static void
pop_clause_context(ErrorContextCallback *callback)
{
	error_context_stack = callback->previous;
}

/* The grammar takes an asterisk as a target; it is not an expression. */
static bool
is_star(Node *node)
{
	return IsA(node, ColumnRef) && IsA(llast(((ColumnRef *) node)->fields), A_Star);
}

/*
 * Parses a clause by the parser's entry point for PL/pgSQL expressions.  That
 * takes everything that can follow SELECT, so whatever is more than an
 * expression has to be refused here.
 */
static Node *
raw_parse(const char *clause)
{
	List	   *statements = raw_parser(clause, RAW_PARSE_PLPGSQL_EXPR);
	SelectStmt *select;
	ResTarget  *target = NULL;

	select = castNode(SelectStmt, linitial_node(RawStmt, statements)->stmt);
	if (list_length(select->targetList) == 1)
		target = linitial_node(ResTarget, select->targetList);

	if (target == NULL || target->name != NULL || is_star(target->val) ||
		select->distinctClause != NIL || select->intoClause != NULL ||
		select->fromClause != NIL || select->whereClause != NULL ||
		select->groupClause != NIL || select->havingClause != NULL ||
		select->windowClause != NIL || select->valuesLists != NIL ||
		select->sortClause != NIL || select->limitOffset != NULL ||
		select->limitCount != NULL || select->lockingClause != NIL ||
		select->withClause != NULL || select->op != SETOP_NONE)
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("where clause is not a single expression: \"%s\"", clause),
				 errhint("Pass what would follow WHERE in a query, without the word itself.")));
	return target->val;
}

/* --------------------------------------------------------------- checking -- */

static bool
is_user_defined_or_mutable(Oid function, void *context pg_attribute_unused())
{
	return function >= FirstNormalObjectId ||
		func_volatile(function) != PROVOLATILE_IMMUTABLE;
}

bool
ecm_type_has_names(Oid type)
{
	TupleDesc	desc;
	bool		result = false;

	check_stack_depth();
	type = getBaseType(type);
	switch (type)
	{
		case REGPROCOID:
		case REGPROCEDUREOID:
		case REGOPEROID:
		case REGOPERATOROID:
		case REGCLASSOID:
		case REGTYPEOID:
		case REGCONFIGOID:
		case REGDICTIONARYOID:
		case REGNAMESPACEOID:
		case REGROLEOID:
		case REGCOLLATIONOID:
		case ECM_REGDATABASEOID:
		case ACLITEMOID:
			return true;
		default:
			break;
	}
	if (OidIsValid(get_element_type(type)))
		return ecm_type_has_names(get_element_type(type));
	switch (get_typtype(type))
	{
		case TYPTYPE_RANGE:
			return ecm_type_has_names(get_range_subtype(type));
		case TYPTYPE_MULTIRANGE:
			return ecm_type_has_names(get_multirange_range(type));
		case TYPTYPE_COMPOSITE:
			break;
		default:
			return false;
	}
	desc = lookup_rowtype_tupdesc_copy(type, -1);
	for (int i = 0; i < desc->natts && !result; i++)
		result = !TupleDescAttr(desc, i)->attisdropped &&
			ecm_type_has_names(TupleDescAttr(desc, i)->atttypid);
	FreeTupleDesc(desc);
	return result;
}

/*
 * Is a constant that names an object, such as 'english'::regconfig, the name
 * of a built-in one?  An object that users have defined can be changed.
 */
static bool
is_built_in_object(Node *node)
{
	Const	   *constant = (Const *) node;

	if (!IsA(node, Const))
		return false;
	return constant->constisnull ||
		(constant->constlen == sizeof(Oid) && constant->constbyval &&
		 DatumGetObjectId(constant->constvalue) < FirstNormalObjectId);
}

/* Has a setting, in this session, the value that consumers evaluate with? */
static bool
is_as_pinned(const char *name)
{
	for (int i = 0; ecm_text_settings[i][0] != NULL; i++)
		if (name == NULL || strcmp(ecm_text_settings[i][0], name) == 0)
		{
			const char *value = GetConfigOption(ecm_text_settings[i][0], false, false);

			if (value == NULL || strcmp(value, ecm_text_settings[i][1]) != 0)
				return false;
		}
	return true;
}

/*
 * The setting by which a function would have another result in a consumer than
 * in this session, or NULL.  Literals of a clause are read here, under the
 * settings of the session.  But some functions that are marked immutable look
 * at settings when they are called.  Their result must be the one that the
 * user gets in his own queries, or the clause is refused.
 */
static const char *
what_has_another_setting(Oid function)
{
	if ((function == F_TIMEZONE_TEXT_TIMESTAMP ||
		 function == F_TIMEZONE_TEXT_TIMESTAMPTZ ||
		 function == F_TIMEZONE_TEXT_TIMETZ) &&
		!is_as_pinned("timezone_abbreviations"))
		return "AT TIME ZONE is evaluated with timezone_abbreviations = 'Default', which is another value here.";
	if (function == F_QUOTE_IDENT && !is_as_pinned("quote_all_identifiers"))
		return "quote_ident() is evaluated with quote_all_identifiers = off, which is on here.";
	return NULL;
}

/* XMLELEMENT and XMLFOREST write values as text: has theirs only one form? */
static bool
has_one_xml_text(Node *arg)
{
	Oid			element = get_element_type(exprType(arg));

	switch (OidIsValid(element) ? element : exprType(arg))
	{
		case BOOLOID:
		case INT2OID:
		case INT4OID:
		case INT8OID:
		case OIDOID:
		case NUMERICOID:
		case TEXTOID:
		case VARCHAROID:
		case BPCHAROID:
		case CHAROID:
		case NAMEOID:
		case DATEOID:
		case TIMEOID:
		case TIMESTAMPOID:
		case UUIDOID:
		case XMLOID:
		case JSONOID:
		case JSONBOID:
		case UNKNOWNOID:
			return true;
		default:
			return false;
	}
}

static bool
writes_values_otherwise(XmlExpr *xml)
{
	ListCell   *lc;

	if ((xml->op != IS_XMLELEMENT && xml->op != IS_XMLFOREST) || is_as_pinned(NULL))
		return false;
	foreach(lc, list_concat_copy(xml->named_args, xml->args))
	{
		if (!has_one_xml_text(lfirst(lc)))
			return true;
	}
	return false;
}

typedef struct CheckContext
{
	ParseState *pstate;
	TupleDesc	desc;
} CheckContext;

/* The reason why a node, apart from its arguments, is not allowed; or NULL. */
static const char *
what_is_forbidden(Node *node, CheckContext *context)
{
	switch (nodeTag(node))
	{
		case T_Var:
			if (((Var *) node)->varattno < 0)
				return "System columns are not allowed.";
			if (((Var *) node)->varattno > 0 &&
				!ecm_is_streamed(TupleDescAttr(context->desc, ((Var *) node)->varattno - 1)))
				return ECM_UNSTREAMED_DETAIL;
			if (exprType(node) < FirstNormalObjectId && ecm_type_has_names(exprType(node)))
				return "Columns of object identifier types are not allowed, since the stream has names for their values.";
			break;
		case T_SubLink:
			return "Subqueries are not allowed.";
		case T_OpExpr:
		case T_DistinctExpr:
		case T_NullIfExpr:		/* three names of one struct */
			if (((OpExpr *) node)->opno >= FirstNormalObjectId)
				return "User-defined operators are not allowed.";
			break;
		case T_ScalarArrayOpExpr:
			if (((ScalarArrayOpExpr *) node)->opno >= FirstNormalObjectId)
				return "User-defined operators are not allowed.";
			break;
		case T_RowCompareExpr:
			{
				ListCell   *lc;

				foreach(lc, ((RowCompareExpr *) node)->opnos)
				{
					if (lfirst_oid(lc) >= FirstNormalObjectId)
						return "User-defined operators are not allowed.";
				}
				break;
			}
		case T_ArrayCoerceExpr: /* part of "varchar_column IN (...)" */
		case T_ArrayExpr:
		case T_BoolExpr:
		case T_BooleanTest:
		case T_CaseExpr:
		case T_CaseTestExpr:
		case T_CoalesceExpr:
		case T_CollateExpr:
		case T_Const:
		case T_MinMaxExpr:
		case T_NullTest:
		case T_RelabelType:
		case T_RowExpr:
			break;
		case T_FuncExpr:
			{
				const char *other = what_has_another_setting(((FuncExpr *) node)->funcid);

				if (other != NULL)
					return other;
				break;
			}
		case T_XmlExpr:
			if (writes_values_otherwise((XmlExpr *) node))
				return "Values of this type in XMLELEMENT or XMLFOREST are written with other settings (DateStyle, IntervalStyle, TimeZone, xmlbinary and the like) than those here.";
			break;
		default:
			return "Only columns, constants, and built-in operators, types, collations and immutable functions are allowed.";
	}

	if (exprType(node) >= FirstNormalObjectId)
		return "User-defined types are not allowed.";
	if (ecm_type_has_names(exprType(node)) && !is_built_in_object(node))
		return "Object identifiers must be constants that name built-in objects.";
	if (check_functions_in_node(node, is_user_defined_or_mutable, NULL))
		return "Functions must be built-in and immutable.";
	if (exprCollation(node) >= FirstNormalObjectId ||
		exprInputCollation(node) >= FirstNormalObjectId)
		return "User-defined collations are not allowed.";
	return NULL;
}

/*
 * The rules are those of core's check_simple_rowfilter_expr(), which is
 * static.  Beyond those, ArrayCoerceExpr is allowed.  It contains the
 * expression by which the elements are converted, and that is checked like any
 * other.
 */
static bool
check_walker(Node *node, void *arg)
{
	CheckContext *context = arg;
	const char *forbidden;

	if (node == NULL)
		return false;
	if (!IsA(node, List) && !IsA(node, CaseWhen) &&
		(forbidden = what_is_forbidden(node, context)) != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("invalid where clause of a shape"),
				 errdetail("%s", forbidden),
				 errhint("A shape's where clause follows the rules of a publication's row filter."),
				 parser_errposition(context->pstate, exprLocation(node))));
	return expression_tree_walker(node, check_walker, context);
}

/*
 * Deparses a clause under pinned settings, so that the text means the same in
 * each session, whatever this one's settings are.
 */
static char *
deparse(Node *expr, Relation rel)
{
	int			nestlevel = NewGUCNestLevel();
	char	   *text;

	ecm_pin_text_settings();
	text = deparse_expression(expr,
							  deparse_context_for(RelationGetRelationName(rel),
												  RelationGetRelid(rel)),
							  false, false);
	AtEOXact_GUC(true, nestlevel);
	return text;
}

EcmFilterDef *
ecm_filter_parse(Relation rel, const char *clause, EcmParams *params, Bitmapset **attnums)
{
	TupleDesc	desc = RelationGetDescr(rel);
	ErrorContextCallback callback;
	CheckContext context;
	ParseState *pstate;
	ParseNamespaceItem *nsitem;
	Node	   *raw;
	Node	   *expr;
	EcmFilterDef *def = palloc0(sizeof(EcmFilterDef));
	Bitmapset  *attrs = NULL;
	int			attr = -1;

	push_clause_context(&callback, clause);
	pstate = make_parsestate(NULL);
	pstate->p_sourcetext = clause;
	nsitem = addRangeTableEntryForRelation(pstate, rel, AccessShareLock, NULL,
										   false, false);
	addNSItemToQuery(pstate, nsitem, false, true, true);
	raw = raw_parse(clause);
	if (params != NULL)
		ecm_params_declare(params, pstate, raw);
	expr = transformWhereClause(pstate, raw, EXPR_KIND_WHERE, "WHERE");
	if (params != NULL)
		expr = ecm_params_replace(params, pstate, expr);
	assign_expr_collations(pstate, expr);
	context.pstate = pstate;
	context.desc = desc;
	(void) check_walker(expr, &context);
	/* a constant part that raises an error, such as 1/0, is refused here */
	(void) eval_const_expressions(NULL, copyObject(expr));
	pop_clause_context(&callback);

	def->clause = deparse(expr, rel);
	pull_varattnos(expr, 1, &attrs);
	def->names = palloc(sizeof(char *) * (desc->natts + 1));
	def->types = palloc(sizeof(Oid) * (desc->natts + 1));
	def->collations = palloc(sizeof(Oid) * (desc->natts + 1));
	*attnums = NULL;
	while ((attr = bms_next_member(attrs, attr)) >= 0)
	{
		AttrNumber	attnum = attr + FirstLowInvalidHeapAttributeNumber;
		Form_pg_attribute att = TupleDescAttr(desc, attnum - 1);

		def->names[def->ncolumns] = pstrdup(NameStr(att->attname));
		def->types[def->ncolumns] = att->atttypid;
		def->collations[def->ncolumns] = att->attcollation;
		def->ncolumns++;
		*attnums = bms_add_member(*attnums, attnum);
	}
	free_parsestate(pstate);
	return def;
}

/* -------------------------------------------------------------- compiling -- */

typedef struct ResolveContext
{
	const EcmFilterDef *def;
	const AttrNumber *attnos;
} ResolveContext;

static Node *
resolve_column(ParseState *pstate, ColumnRef *ref)
{
	ResolveContext *context = pstate->p_ref_hook_state;
	const EcmFilterDef *def = context->def;
	const char *name;

	if (list_length(ref->fields) != 1 || !IsA(linitial(ref->fields), String))
		return NULL;
	name = strVal(linitial(ref->fields));
	for (int i = 0; i < def->ncolumns; i++)
		if (strcmp(def->names[i], name) == 0)
			return (Node *) makeVar(1, context->attnos[i], def->types[i], -1,
									def->collations[i], 0);
	return NULL;
}

static Expr *
strip_relabel(Expr *expr)
{
	while (expr != NULL && IsA(expr, RelabelType))
		expr = ((RelabelType *) expr)->arg;
	return expr;
}

/*
 * Can the caller look for values in a hash table instead of applying the
 * operator to each?
 */
static bool
is_hashable(Oid operator, Expr *left)
{
	RegProcedure left_hash;
	RegProcedure right_hash;

	return op_hashjoinable(operator, exprType((Node *) left)) &&
		get_op_hash_functions(operator, &left_hash, &right_hash);
}

static bool
take_equality(OpExpr *op, EcmFilter *filter, MemoryContext context)
{
	Oid			operator = op->opno;
	Expr	   *left;
	Expr	   *right;
	Expr	   *column;
	Const	   *constant;

	if (list_length(op->args) != 2)
		return false;
	left = linitial(op->args);
	right = lsecond(op->args);
	if (IsA(strip_relabel(left), Const))
	{
		Expr	   *swap = left;

		left = right;
		right = swap;
		operator = get_commutator(operator);
	}
	column = strip_relabel(left);
	constant = (Const *) strip_relabel(right);
	if (!OidIsValid(operator) || !IsA(column, Var) || !IsA(constant, Const) ||
		constant->constisnull || !is_hashable(operator, left))
		return false;

	filter->equal_attno = ((Var *) column)->varattno;
	filter->equal_operator = operator;
	filter->equal_collation = op->inputcollid;
	filter->equals_byval = constant->constbyval;
	filter->nequals = 1;
	filter->equals = MemoryContextAlloc(context, sizeof(Datum));
	MemoryContextSwitchTo(context);
	filter->equals[0] = datumCopy(constant->constvalue, constant->constbyval,
								  constant->constlen);
	return true;
}

static bool
take_list(ScalarArrayOpExpr *op, EcmFilter *filter, MemoryContext context)
{
	Expr	   *left = linitial(op->args);
	Expr	   *column = strip_relabel(left);
	Const	   *constant = (Const *) strip_relabel(lsecond(op->args));
	ArrayType  *array;
	int16		typlen;
	bool		typbyval;
	char		typalign;
	Datum	   *elements;
	bool	   *nulls;
	int			nelements;

	if (!op->useOr || !IsA(column, Var) || !IsA(constant, Const) ||
		constant->constisnull || !is_hashable(op->opno, left))
		return false;

	array = DatumGetArrayTypeP(constant->constvalue);
	get_typlenbyvalalign(ARR_ELEMTYPE(array), &typlen, &typbyval, &typalign);
	deconstruct_array(array, ARR_ELEMTYPE(array), typlen, typbyval, typalign,
					  &elements, &nulls, &nelements);
	filter->equal_attno = ((Var *) column)->varattno;
	filter->equal_operator = op->opno;
	filter->equal_collation = op->inputcollid;
	filter->equals_byval = typbyval;
	filter->equals = MemoryContextAlloc(context, sizeof(Datum) * Max(nelements, 1));
	MemoryContextSwitchTo(context);
	for (int i = 0; i < nelements; i++)
		if (!nulls[i])
			filter->equals[filter->nequals++] = datumCopy(elements[i], typbyval, typlen);
	return true;
}

/*
 * Takes the first equality of a column with constants out of the quals
 * (implicitly ANDed), and puts it into the filter's members for that; the rest into
 * its quals.
 */
static void
take_out_equality(List *quals, EcmFilter *filter, MemoryContext work,
				  MemoryContext context, EcmLowerCase *lower_case)
{
	List	   *rest = NIL;
	List	   *lowered_quals = NIL;
	Bitmapset  *lowered = NULL;
	ListCell   *lc;

	foreach(lc, quals)
	{
		Node	   *qual = lfirst(lc);
		bool		taken = false;

		if (filter->equal_attno == 0 && IsA(qual, OpExpr))
			taken = take_equality((OpExpr *) qual, filter, context);
		else if (filter->equal_attno == 0 && IsA(qual, ScalarArrayOpExpr))
			taken = take_list((ScalarArrayOpExpr *) qual, filter, context);
		MemoryContextSwitchTo(work);
		if (!taken)
			rest = lappend(rest, qual);
	}
	if (rest == NIL)
		return;
	if (lower_case != NULL)
		lowered_quals = ecm_lower_case_replace(lower_case, rest, &lowered);
	filter->context = AllocSetContextCreate(context, "electric_cm filter",
											ALLOCSET_SMALL_SIZES);
	MemoryContextSwitchTo(filter->context);
	filter->quals = copyObject(rest);
	if (lowered != NULL)
	{
		filter->lower_case = lower_case;
		filter->lowered = bms_copy(lowered);
		filter->lowered_quals = copyObject(lowered_quals);
	}
	MemoryContextSwitchTo(work);
}

EcmFilter *
ecm_filter_compile(const EcmFilterDef *def, const AttrNumber *attnos,
				   MemoryContext context, EcmLowerCase *lower_case)
{
	MemoryContext work = AllocSetContextCreate(CurrentMemoryContext,
											   "electric_cm filter",
											   ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(work);
	ResolveContext resolve = {def, attnos};
	EcmFilter  *filter = MemoryContextAllocZero(context, sizeof(EcmFilter));
	ErrorContextCallback callback;
	ParseState *pstate;
	Node	   *expr;
	int			nestlevel = NewGUCNestLevel();

	ecm_pin_text_settings();
	push_clause_context(&callback, def->clause);
	pstate = make_parsestate(NULL);
	pstate->p_sourcetext = def->clause;
	pstate->p_pre_columnref_hook = resolve_column;
	pstate->p_ref_hook_state = &resolve;
	expr = transformWhereClause(pstate, raw_parse(def->clause), EXPR_KIND_WHERE, "WHERE");
	assign_expr_collations(pstate, expr);
	/* also sets the functions of operators that simplification has added */
	expr = (Node *) expression_planner((Expr *) expr);
	pop_clause_context(&callback);
	AtEOXact_GUC(true, nestlevel);

	take_out_equality(make_ands_implicit((Expr *) expr), filter, work, context, lower_case);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(work);
	return filter;
}

void
ecm_filter_free(EcmFilter *filter)
{
	for (int i = 0; i < filter->nequals && !filter->equals_byval; i++)
		pfree(DatumGetPointer(filter->equals[i]));
	if (filter->equals != NULL)
		pfree(filter->equals);
	if (filter->context != NULL)
		MemoryContextDelete(filter->context);
	pfree(filter);
}

/* ------------------------------------------------------------- evaluating -- */

/* The state for evaluating conditions, which is made when first needed. */
static ExprState *
ready(ExprState **state, List *quals, MemoryContext context)
{
	MemoryContext old;

	if (*state == NULL)
	{
		old = MemoryContextSwitchTo(context);
		*state = ExecInitQual(quals, NULL);
		MemoryContextSwitchTo(old);
	}
	return *state;
}

bool
ecm_filter_rest_matches(EcmFilter *filter, ExprContext *econtext, Oid owner)
{
	MemoryContext old;
	Oid			save_userid;
	int			save_sec_context;
	bool		result;

	if (filter->quals == NIL)
		return true;

	GetUserIdAndSecContext(&save_userid, &save_sec_context);
	SetUserIdAndSecContext(owner, save_sec_context |
						   SECURITY_RESTRICTED_OPERATION |
						   SECURITY_LOCAL_USERID_CHANGE);
	old = MemoryContextSwitchTo(econtext->ecxt_per_tuple_memory);
	if (filter->lower_case != NULL &&
		ecm_lower_case_make(filter->lower_case, filter->lowered, econtext))
		result = ExecQual(ready(&filter->lowered_state, filter->lowered_quals, filter->context), econtext);
	else
		result = ExecQual(ready(&filter->state, filter->quals, filter->context), econtext);
	MemoryContextSwitchTo(old);
	/* free it now: a thousand clauses may each copy a large value of the row */
	ResetExprContext(econtext);
	SetUserIdAndSecContext(save_userid, save_sec_context);
	return result;
}
