/*-------------------------------------------------------------------------
 *
 * shape_params.c
 *	  Parameters of where clauses: $1 stands for a value.
 *
 * A clause is stored with the values in it, as constants.  So it is the same shape however
 * it was written.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "parser/parse_param.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "base/compat.h"
#include "shape/shape_params.h"

typedef struct ParamsContext
{
	const EcmParams *params;
	ParseState *pstate;
	bool	   *used;			/* while they are looked for */
} ParamsContext;

static bool
find_walker(Node *node, void *arg)
{
	ParamsContext *context = arg;

	if (node == NULL)
		return false;
	if (IsA(node, ParamRef))
	{
		const ParamRef *param = (const ParamRef *) node;

		if (param->number > context->params->n)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_PARAMETER),
					 errmsg("there is no value for parameter $%d", param->number),
					 errhint("Pass an array with a value for each parameter, as params."),
					 parser_errposition(context->pstate, param->location)));
		if (param->number > 0)	/* the parser refuses $0 */
			context->used[param->number - 1] = true;
		return false;
	}
	return raw_expression_tree_walker(node, find_walker, context);
}

void
ecm_params_declare(EcmParams *params, ParseState *pstate, Node *raw_clause)
{
	ParamsContext context = {params, pstate, palloc0(Max(params->n, 1) * sizeof(bool))};

	(void) find_walker(raw_clause, &context);
	for (int i = 0; i < params->n; i++)
		if (!context.used[i])
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("the where clause has no parameter $%d", i + 1),
					 errhint("params must have as many values as the clause has parameters.")));
	params->types = NULL;
	params->ntypes = 0;
	setup_parse_variable_parameters(pstate, &params->types, &params->ntypes);
}

static Node *
constant_of(const EcmParams *params, const Param *param)
{
	char	   *text = params->texts[param->paramid - 1];
	Oid			input;
	Oid			ioparam;
	int16		len;
	bool		byval;
	Datum		value;
	Const	   *result;

	if (get_typtype(param->paramtype) == TYPTYPE_DOMAIN)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("invalid where clause of a shape"),
				 errdetail("Parameter $%d is of type %s, a domain.", param->paramid, format_type_be(param->paramtype)),
				 errhint("A shape's where clause follows the rules of a publication's row filter.")));
	getTypeInputInfo(param->paramtype, &input, &ioparam);
	get_typlenbyval(param->paramtype, &len, &byval);
	/* also of a null: a domain may forbid it */
	value = OidInputFunctionCall(input, text, ioparam, -1);
	result = makeConst(param->paramtype, -1, param->paramcollid, len,
					   text == NULL ? (Datum) 0 : value, text == NULL, byval);
	result->location = param->location;
	return (Node *) result;
}

static Node *
replace_mutator(Node *node, void *arg)
{
	ParamsContext *context = arg;

	if (node == NULL)
		return NULL;
	if (IsA(node, Param))
	{
		const Param *param = (const Param *) node;

		/*
		 * the types as they have turned out: an earlier one may not have been
		 * known
		 */
		if (param->paramtype == UNKNOWNOID ||
			param->paramtype != context->params->types[param->paramid - 1])
			ereport(ERROR,
					(errcode(ERRCODE_INDETERMINATE_DATATYPE),
					 errmsg("could not determine data type of parameter $%d", param->paramid),
					 errhint("Write its type in the clause, as in $%d::text.", param->paramid),
					 parser_errposition(context->pstate, param->location)));
		return constant_of(context->params, param);
	}
	return expression_tree_mutator(node, replace_mutator, context);
}

Node *
ecm_params_replace(const EcmParams *params, ParseState *pstate, Node *expr)
{
	ParamsContext context = {params, pstate, NULL};

	return replace_mutator(expr, &context);
}
