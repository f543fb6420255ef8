// Tables as they lie on the disk: one file, with what was appended beside it, or a folder of shards.
#ifndef MGQE_TABLE_FILES_H
#define MGQE_TABLE_FILES_H

#include <memory>
#include <string>

#include "container.h"
#include "table.h"

// The table of a file, with everything appended to it, or of the index of a folder of shards.
std::unique_ptr<Table> open_table(const std::string& path, const Reading& reading);

#endif
