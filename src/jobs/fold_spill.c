/*-------------------------------------------------------------------------
 *
 * fold_spill.c
 *	  Lists of bytes in one temporary file, which outlives transactions.
 *
 * The server's BufFile could do this with a file for each list.  But closing one
 * flushes its buffer, and that may raise an ERROR just when an ERROR (no space
 * is left) is why it is closed.  Here the file is closed without further ado by
 * the memory context that the lists are in.
 *
 * The file consists of blocks, each of which belongs to one list or is free.
 * The last block of each list is in memory until it is full.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "storage/fd.h"
#include "utils/expandeddatum.h"	/* varlenas, from 16 on */
#include "utils/memutils.h"
#include "utils/wait_event.h"

#include "jobs/fold_spill.h"

#define BLOCK_BYTES		(32 * 1024)

typedef struct List
{
	int64		bytes;
	uint32	   *blocks;			/* that are full, in the file */
	int64		nblocks;
	int64		max_blocks;
	char	   *tail;			/* the rest; NULL: there is none */

	/* the block of the file that was read last */
	char	   *read;
	int64		read_block;		/* its index in blocks; -1: none */
} List;

struct EcmSpill
{
	MemoryContext context;
	MemoryContextCallback callback;
	File		file;
	uint32		end;			/* number of blocks in the file */
	uint32	   *free;			/* those that belong to no list */
	int64		nfree;
	int64		max_free;
	List	   *lists;
};

static void
close_file(void *arg)
{
	FileClose(((EcmSpill *) arg)->file);
}

EcmSpill *
ecm_spill_create(int nlists)
{
	EcmSpill   *spill = palloc0(sizeof(EcmSpill));

	spill->context = CurrentMemoryContext;
	spill->lists = MemoryContextAllocExtended(CurrentMemoryContext, nlists * sizeof(List),
											  MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	for (int i = 0; i < nlists; i++)
		spill->lists[i].read_block = -1;
	spill->file = OpenTemporaryFile(true);
	spill->callback.func = close_file;
	spill->callback.arg = spill;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, &spill->callback);
	return spill;
}

/* Appends a number to an array of numbers. */
static void
add_number(EcmSpill *spill, uint32 **numbers, int64 *n, int64 *max, uint32 number)
{
	if (*n == *max)
	{
		*max = Max(*max * 2, 16);
		*numbers = *numbers == NULL ?
			MemoryContextAlloc(spill->context, *max * sizeof(uint32)) :
			repalloc_huge(*numbers, *max * sizeof(uint32));
	}
	(*numbers)[(*n)++] = number;
}

static void
write_tail(EcmSpill *spill, List *list)
{
	uint32		block = spill->nfree > 0 ? spill->free[--spill->nfree] : spill->end++;
	int			written;

	errno = 0;
	written = FileWrite(spill->file, list->tail, BLOCK_BYTES,
						(int64) block * BLOCK_BYTES, WAIT_EVENT_BUFFILE_WRITE);
	if (written != BLOCK_BYTES)
	{
		if (errno == 0)
			errno = ENOSPC;
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not write to file \"%s\": %m", FilePathName(spill->file))));
	}
	add_number(spill, &list->blocks, &list->nblocks, &list->max_blocks, block);
}

void
ecm_spill_append(EcmSpill *spill, int number, const void *data, Size len)
{
	List	   *list = &spill->lists[number];

	while (len > 0)
	{
		Size		used = list->bytes % BLOCK_BYTES;
		Size		n = Min(len, BLOCK_BYTES - used);

		if (list->tail == NULL)
			list->tail = MemoryContextAlloc(spill->context, BLOCK_BYTES);
		memcpy(list->tail + used, data, n);
		data = (const char *) data + n;
		len -= n;
		if (used + n == BLOCK_BYTES)
			write_tail(spill, list);
		list->bytes += n;
	}
}

int64
ecm_spill_bytes(const EcmSpill *spill, int number)
{
	return spill->lists[number].bytes;
}

void
ecm_spill_clear(EcmSpill *spill, int number)
{
	List	   *list = &spill->lists[number];

	for (int64 i = 0; i < list->nblocks; i++)
		add_number(spill, &spill->free, &spill->nfree, &spill->max_free,
				   list->blocks[i]);
	if (list->blocks != NULL)
		pfree(list->blocks);
	if (list->tail != NULL)
		pfree(list->tail);
	if (list->read != NULL)
		pfree(list->read);
	memset(list, 0, sizeof(List));
	list->read_block = -1;
}

void
ecm_spill_swap(EcmSpill *spill, int a, int b)
{
	List		list = spill->lists[a];

	spill->lists[a] = spill->lists[b];
	spill->lists[b] = list;
}

/* The bytes of a list's block; those of a block in the file are read. */
static const char *
block_of(EcmSpill *spill, List *list, int64 index)
{
	int			n;

	if (index == list->nblocks)
		return list->tail;
	if (index == list->read_block)
		return list->read;
	if (list->read == NULL)
		list->read = MemoryContextAlloc(spill->context, BLOCK_BYTES);
	list->read_block = -1;
	n = FileRead(spill->file, list->read, BLOCK_BYTES,
				 (int64) list->blocks[index] * BLOCK_BYTES, WAIT_EVENT_BUFFILE_READ);
	if (n < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not read file \"%s\": %m", FilePathName(spill->file))));
	if (n != BLOCK_BYTES)
		elog(ERROR, "could not read file \"%s\": read only %d of %d bytes",
			 FilePathName(spill->file), n, BLOCK_BYTES);
	list->read_block = index;
	return list->read;
}

void
ecm_spill_read(EcmSpill *spill, int number, int64 *position, void *to, Size len)
{
	List	   *list = &spill->lists[number];

	if ((int64) len > list->bytes - *position)
		elog(ERROR, "could not read %zu bytes at " INT64_FORMAT " of " INT64_FORMAT,
			 len, *position, list->bytes);
	while (len > 0)
	{
		Size		at = *position % BLOCK_BYTES;
		Size		n = Min(len, BLOCK_BYTES - at);

		memcpy(to, block_of(spill, list, *position / BLOCK_BYTES) + at, n);
		to = (char *) to + n;
		len -= n;
		*position += n;
	}
}

/* What precedes an entry in a list; key and entry follow. */
typedef struct Record
{
	int			member;
	uint32		key_len;
	uint32		entry_len;
} Record;

void
ecm_spill_put_entry(EcmSpill *spill, int list, int member, const bytea *key,
					const bytea *entry)
{
	Record		record = {member, VARSIZE_ANY_EXHDR(key), VARSIZE_ANY_EXHDR(entry)};

	ecm_spill_append(spill, list, &record, sizeof(record));
	ecm_spill_append(spill, list, VARDATA_ANY(key), record.key_len);
	ecm_spill_append(spill, list, VARDATA_ANY(entry), record.entry_len);
}

static bytea *
read_bytes(EcmSpill *spill, int list, int64 *position, uint32 len)
{
	bytea	   *bytes = palloc(VARHDRSZ + (Size) len);

	SET_VARSIZE(bytes, VARHDRSZ + (Size) len);
	ecm_spill_read(spill, list, position, VARDATA(bytes), len);
	return bytes;
}

void
ecm_spill_get_entry(EcmSpill *spill, int list, int64 *position, int *member, bytea **key,
					bytea **entry)
{
	Record		record;

	ecm_spill_read(spill, list, position, &record, sizeof(record));
	*member = record.member;
	*key = read_bytes(spill, list, position, record.key_len);
	*entry = read_bytes(spill, list, position, record.entry_len);
}
