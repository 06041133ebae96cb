/*-------------------------------------------------------------------------
 *
 * syncs.c
 *	  Counts the fsync() and fdatasync() calls of each process of a server, to
 *	  be put in front of libc by LD_PRELOAD.  Compiled and used by bench/cost.
 *
 * The file that SYNCS_FILE names is an array of 64-bit counts, by PID.
 *
 *-------------------------------------------------------------------------
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAX_PID (4 * 1024 * 1024)	/* the kernel's PID_MAX_LIMIT */

static uint64_t *counts;

static void
count(void)
{
	if (counts == NULL)
	{
		const char *name = getenv("SYNCS_FILE");
		int			fd = name != NULL ? open(name, O_RDWR) : -1;
		void	   *at = MAP_FAILED;

		if (fd >= 0)
		{
			at = mmap(NULL, MAX_PID * sizeof(uint64_t), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
			close(fd);
		}
		if (at == MAP_FAILED)
			abort();
		counts = at;
	}
	counts[getpid()]++;
}

int
fsync(int fd)
{
	static int	(*server) (int);

	if (server == NULL)
		server = (int (*) (int)) dlsym(RTLD_NEXT, "fsync");
	count();
	return server(fd);
}

int
fdatasync(int fd)
{
	static int	(*server) (int);

	if (server == NULL)
		server = (int (*) (int)) dlsym(RTLD_NEXT, "fdatasync");
	count();
	return server(fd);
}
