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
#include "utils/lsyscache.h"

#include "base/compat.h"
#include "shape/shape_params.h"

typedef struct ReplaceContext
{
	const EcmParams *params;
	ParseState *pstate;
	bool	   *used;
} ReplaceContext;

void
ecm_params_declare(EcmParams *params, ParseState *pstate)
{
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
	ReplaceContext *context = arg;

	if (node == NULL)
		return NULL;
	if (IsA(node, Param))
	{
		const Param *param = (const Param *) node;

		if (param->paramid > context->params->n)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_PARAMETER),
					 errmsg("there is no value for parameter $%d", param->paramid),
					 errhint("Pass an array with a value for each parameter, as params."),
					 parser_errposition(context->pstate, param->location)));

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
		context->used[param->paramid - 1] = true;
		return constant_of(context->params, param);
	}
	return expression_tree_mutator(node, replace_mutator, context);
}

Node *
ecm_params_replace(const EcmParams *params, ParseState *pstate, Node *expr)
{
	ReplaceContext context = {params, pstate, palloc0(Max(params->n, 1) * sizeof(bool))};
	Node	   *result = replace_mutator(expr, &context);

	for (int i = 0; i < params->n; i++)
		if (!context.used[i])
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("the where clause has no parameter $%d", i + 1),
					 errhint("params must have as many values as the clause has parameters.")));
	return result;
}
