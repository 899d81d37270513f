module example.com/c_library

go 1.19
