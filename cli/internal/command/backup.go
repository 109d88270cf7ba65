package command

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	clusterv1 "dhow.dev/gen/go/dhow/cluster/v1"
	"dhow.dev/pkg/apistatus"
)

func newBackup(s *session) *cobra.Command {
	return &cobra.Command{
		Use:   "backup FILE",
		Short: "Write all of the cluster's data to a file, for dhow restore",
		Long: `Write all of the cluster's data, as it is now, to a file for dhow restore. The file appears whole or not at all, and an older one of that name is replaced.

Secrets are encrypted in it as they are in the cluster. Keep the folder pki of the cluster's data directory too, in another place: it has the key.`,
		Example: "  dhow backup /backup/$(date +%F)",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			stream, err := clusterv1.NewClusterClient(s.conn).Backup(c.Context(), &clusterv1.BackupRequest{})
			if err != nil {
				return apistatus.FromGRPC(err)
			}
			written, err := writeWhole(args[0], func(w io.Writer) error {
				for {
					part, err := stream.Recv()
					if errors.Is(err, io.EOF) {
						return nil
					}
					if err != nil {
						return apistatus.FromGRPC(err)
					}
					if _, err := w.Write(part.GetData()); err != nil {
						return err
					}
				}
			})
			if err != nil {
				return err
			}
			fmt.Fprintf(s.Out, "%s written, %.1f MB\n", args[0], float64(written)/1e6)
			return nil
		},
	}
}

// writeWhole makes a file that only its owner reads, once it is complete and on disk.
func writeWhole(file string, write func(io.Writer) error) (int64, error) {
	tmp, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+".*")
	if err != nil {
		return 0, err
	}
	defer os.Remove(tmp.Name()) // fails after the rename, as it should
	err = write(tmp)
	size, seekErr := tmp.Seek(0, io.SeekCurrent)
	if err := errors.Join(err, seekErr, tmp.Sync(), tmp.Close()); err != nil {
		return 0, err
	}
	return size, os.Rename(tmp.Name(), file)
}
