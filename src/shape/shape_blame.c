/*-------------------------------------------------------------------------
 *
 * shape_blame.c
 *	  Which shape is to blame for the death of a process.
 *
 * A process that evaluates a where clause, or writes a row, may run out of
 * memory, be killed for that, or crash.  Then it can't say any more which
 * shape it was working on, and without knowing that, its successor would die
 * in the same way, for ever.  So each such process (a consumer, or a pool
 * session that takes a snapshot) keeps a note of where it is, and its
 * successor reads the note.  Since a process that is killed takes the server's
 * shared memory with it, the note is in a file that is mapped into memory:
 * changing it costs no more than a store.
 *
 * The first death is no shape's fault, since other processes may have used up
 * the memory.  A second one at the same place of the stream is the fault of
 * the shape that was worked on or, if there was none, of all shapes of the
 * table.  Once a shape is to blame for a transaction, a further death there at
 * another shape is blamed on that shape's owner the first time: all shapes end
 * that he has of the table.  Otherwise a thousand shapes with the same fault
 * would cost two thousand deaths, each of which restarts the server.
 *
 * A process that the postmaster ends by SIGQUIT, because another process has
 * crashed or in an immediate shutdown, has not died of its work: it clears the
 * note.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include "pgstat.h"
#include "storage/fd.h"

#include "base/compat.h"
#include "shape/shape_blame.h"

#define MAGIC		0x45434d31	/* to be changed with the struct */

/* The contents of the file. */
typedef struct Note
{
	uint32		magic;
	int32		deaths;			/* number of deaths in a row ... */
	EcmPlace	died;			/* ... at this place */
	XLogRecPtr	blamed;			/* transaction for which a shape has been
								 * blamed */
	EcmPlace	here;			/* where the process is now */
} Note;

static Note unmapped;			/* in use if the file can't be mapped, and
								 * after ecm_blame_close() */
static Note *note = &unmapped;
static char path[MAXPGPATH];
static pqsigfunc quit_handler;

volatile EcmPlace *ecm_here = &unmapped.here;

static void
forget_here(void)
{
	ecm_here->shape = 0;
	ecm_here->relation = InvalidOid;
	ecm_here->lsn = InvalidXLogRecPtr;
}

static void
handle_quit(SIGNAL_ARGS)
{
	forget_here();
	quit_handler(ECM_SIGNAL_ARGS_OF_MINE);
}

/*
 * SIGBUS handler.  A file system that copies on write needs space to change a
 * page, even one that has been written before.  If the disk is full, the store
 * into the mapped page raises SIGBUS, which would bring the whole server down.
 * Then anonymous memory takes the place of the page, and the process goes on
 * without a file.
 */
static void
handle_bus_error(int signo, siginfo_t *info, void *context pg_attribute_unused())
{
	char	   *address = info->si_addr;
	char	   *start = (char *) note;

	if (note == &unmapped || address < start || address >= start + sizeof(Note) ||
		mmap(start, sizeof(Note), PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
		signal(signo, SIG_DFL); /* not ours: raised again, it ends the process */
}

static void
catch_bus_errors(void)
{
	struct sigaction action;

	memset(&action, 0, sizeof(action));
	action.sa_sigaction = handle_bus_error;
	action.sa_flags = SA_SIGINFO;
	sigemptyset(&action.sa_mask);
	(void) sigaction(SIGBUS, &action, NULL);
}

/* Maps the file, which is made if need be; NULL: it can't be mapped. */
static Note *
map_file(void)
{
	Note		former;
	void	   *mapped = MAP_FAILED;
	int			fd = OpenTransientFile(path, O_RDWR | O_CREAT | PG_BINARY);

	if (fd < 0)
		return NULL;
	if (pg_pread(fd, &former, sizeof(former), 0) != sizeof(former) ||
		former.magic != MAGIC)
		memset(&former, 0, sizeof(former));
	former.magic = MAGIC;
	/* written before it is mapped, so that the file has that size */
	if (pg_pwrite(fd, &former, sizeof(former), 0) == sizeof(former))
		mapped = mmap(NULL, sizeof(Note), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CloseTransientFile(fd);
	return mapped == MAP_FAILED ? NULL : mapped;
}

static bool
died_there(const EcmPlace *place)
{
	return note->deaths > 0 && note->died.lsn == place->lsn &&
		note->died.shape == place->shape &&
		(place->shape != 0 || note->died.relation == place->relation);
}

/* Who is to blame for a death at that place?  Notes the death. */
static EcmBlame
judge(const EcmPlace *place)
{
	if (place->shape == 0 && !OidIsValid(place->relation))
		return ECM_BLAME_NOBODY;
	if (place->shape != 0 && !XLogRecPtrIsInvalid(place->lsn) &&
		place->lsn == note->blamed)
		return ECM_BLAME_OWNER;
	if (died_there(place))
		return place->shape != 0 ? ECM_BLAME_SHAPE : ECM_BLAME_TABLE;
	note->died = *place;
	note->deaths = 1;
	return ECM_BLAME_NOBODY;
}

EcmBlame
ecm_blame_open(const char *name, pqsigfunc quit, EcmPlace *place)
{
	Note	   *mapped;

	snprintf(path, sizeof(path), "%s/electric_cm.%s", PG_STAT_TMP_DIR, name);
	mapped = map_file();
	if (mapped == NULL)
		ereport(LOG,
				(errcode_for_file_access(),
				 errmsg("could not map file \"%s\": %m", path)));
	else
	{
		note = mapped;
		ecm_here = &note->here;
		catch_bus_errors();
	}
	*place = note->here;
	forget_here();
	quit_handler = quit;
	pqsignal(SIGQUIT, handle_quit);
	return judge(place);
}

EcmBlame
ecm_blame_death(EcmPlace *place)
{
	*place = note->here;
	forget_here();
	return judge(place);
}

void
ecm_blame_settled(const EcmPlace *place)
{
	note->deaths = 0;
	note->blamed = place->lsn;
}

bool
ecm_blame_died_at(XLogRecPtr lsn, int64 shape)
{
	if (lsn == note->blamed && !XLogRecPtrIsInvalid(lsn) && shape == 0)
		return true;
	return note->deaths > 0 && note->died.lsn == lsn &&
		(shape == 0 || note->died.shape == shape);
}

void
ecm_blame_passed(XLogRecPtr lsn)
{
	if (note->deaths > 0 && lsn > note->died.lsn)
		note->deaths = 0;
	if (lsn > note->blamed)
		note->blamed = InvalidXLogRecPtr;
}

void
ecm_blame_close(void)
{
	Note	   *mapped = note;

	forget_here();
	if (quit_handler != NULL)
		pqsignal(SIGQUIT, quit_handler);
	if (note == &unmapped)
		return;
	unmapped = *note;
	note = &unmapped;
	ecm_here = &unmapped.here;
	signal(SIGBUS, SIG_DFL);
	if (unmapped.deaths == 0 && XLogRecPtrIsInvalid(unmapped.blamed))
		(void) unlink(path);
	(void) munmap(mapped, sizeof(Note));
}
